-- The machine of domain/explanations.py (``step``), inside Redis. A property test holds the two together.
-- KEYS  record, events
-- ARGV  action, now ms ('' for this server's clock), keep ms, run, attempt, lease ms, deadline ms, to, then field, value …
-- Reply: answer, state, run, attempt, deadline ms
local action, keep = ARGV[1], tonumber(ARGV[3])
local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local run, attempt = tonumber(ARGV[4]), tonumber(ARGV[5])
local lease, deadline, to = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local r = redis.call('HMGET', KEYS[1], 'state', 'run', 'attempt', 'lease_ms', 'deadline_ms')
local state = r[1]
local w = { run = tonumber(r[2] or 0), attempt = tonumber(r[3] or 0), lease = tonumber(r[4] or 0), deadline = tonumber(r[5] or 0) }
local final = state == 'complete' or state == 'failed' or state == 'cancelled' or state == 'expired'
local held = (state == 'calculating' or state == 'partial') and w.lease > now

-- string.format: Lua prints large numbers as 1.7e+12
local function int(x) return string.format('%d', x) end
local function answer(word) return { word, state or '', int(w.run), int(w.attempt), int(w.deadline) } end

local function change(kind)
  local fields = { 'state', state, 'run', int(w.run), 'attempt', int(w.attempt), 'lease_ms', int(w.lease), 'deadline_ms', int(w.deadline) }
  local told = { 'kind', kind, 'state', state, 'run', int(w.run), 'attempt', int(w.attempt), 'at_ms', int(now) }
  for i = 9, #ARGV do
    fields[#fields + 1] = ARGV[i]
    if action ~= 'ask' then told[#told + 1] = ARGV[i] end
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  redis.call('HSETNX', KEYS[1], 'at:' .. state, int(now))
  if kind ~= 'progress' or #ARGV > 8 then redis.call('XADD', KEYS[2], 'MAXLEN', '~', '512', '*', unpack(told)) end
  local life = int(math.max(keep, w.deadline - now + keep))
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('PEXPIRE', KEYS[2], life)
end

if action == 'ask' then
  if not state then
    state, w.run, w.deadline = 'pending', math.max(1, run), deadline
  elseif final and state ~= 'complete' and (run == 0 or run == w.run + 1) then
    for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
      if string.sub(name, 1, 3) == 'at:' or string.sub(name, 1, 6) == 'stage:' or name == 'reason' then
        redis.call('HDEL', KEYS[1], name)
      end
    end
    -- Who follows the new run is not told of the old one's end. Trimmed, not deleted: ids never come twice.
    redis.call('XTRIM', KEYS[2], 'MAXLEN', '0')
    state, w.run, w.lease, w.deadline = 'pending', w.run + 1, 0, deadline
  else
    return answer('joined')
  end
  change('state')
  return answer('ok')
end
if not state then return answer('absent') end
if final then return answer('final') end
if action == 'cancel' then
  state, w.lease = 'cancelled', 0
elseif action == 'expire' then
  if now <= w.deadline or held then return answer('early') end
  state, w.lease = 'expired', 0
elseif action == 'claim' then
  if run ~= w.run then return answer('stale') end
  if held then return answer('busy') end
  if now > w.deadline then
    state, w.lease = 'expired', 0
    change('state')
    return answer('final')
  end
  state, w.attempt, w.lease = 'calculating', w.attempt + 1, now + lease
else
  if state == 'pending' or attempt ~= w.attempt then return answer('stale') end
  if action == 'hand_back' then
    state, w.lease = 'pending', 0
  elseif action == 'finish' then
    state, w.lease = to, 0
  else
    if action == 'stage' then state = 'partial' end
    w.lease = now + lease
  end
end
change(action == 'stage' and 'stage' or action == 'keep' and 'progress' or 'state')
return answer('ok')
