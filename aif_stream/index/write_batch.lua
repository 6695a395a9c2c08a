-- A live write of one bucket: features and the rows of every listed version, or nothing at all.
-- KEYS  items, versions, rows of each version brought
-- ARGV  packed items, then per version brought: its name, its packed rows (one fixed size)
-- Packed item: key (8) · size u32 · value; the value begins with time u64 · offset u64 · flags u8 · id size u16.
-- Reply: one byte per item (0 written, 1 equal, 2 older, 3 collision), 2 and 3 followed by the stored time and
-- offset; or the error VERSIONMISSING with the names that were not brought (then nothing was written).
-- Orders are numbers (doubles, exact below 2^53, checked by the caller): Lua compares strings by locale.
-- A call of Redis costs a microsecond, a field more in one call a fifth: so a bucket's items are read by one HMGET and
-- written by one HSET per hash.
local call, parse, sub, byte, spread = redis.call, struct.unpack, string.sub, string.byte, unpack
local items, packed = KEYS[1], ARGV[1]
local FIELDS = 1000 -- of one call: Lua's stack holds 8,000 values

local targets, missing = {}, {}
for _, name in ipairs(call('SMEMBERS', KEYS[2])) do
  local found
  for i = 2, #ARGV, 2 do
    if ARGV[i] == name then found = i end
  end
  if found then
    targets[#targets + 1] = {hash = KEYS[2 + found / 2], rows = ARGV[found + 1], pending = {'HSET', KEYS[2 + found / 2]}}
  else
    missing[#missing + 1] = name
  end
end
if #missing > 0 then
  return redis.error_reply('VERSIONMISSING ' .. table.concat(missing, ' '))
end

local keys, values, count, at = {}, {}, 0, 1
while at <= #packed do
  count = count + 1
  keys[count], values[count], at = parse('<c8I4c0', packed, at)
end
local before = {}
for first = 1, count, FIELDS do
  local last = math.min(first + FIELDS - 1, count)
  local found = call('HMGET', items, spread(keys, first, last))
  for i = first, last do before[i] = found[i - first + 1] end
end

local headers, fresh = {'HSET', items}, {} -- fresh: what this call has written of an item, in Redis already or not
-- The headers last: should Redis refuse a row, the events still count as new when they come again.
local function flush()
  if #headers == 2 then return end
  for _, target in ipairs(targets) do
    call(spread(target.pending))
    target.pending = {'HSET', target.hash}
  end
  call(spread(headers))
  headers = {'HSET', items}
end

local function row_of(target, i)
  local bytes = #target.rows / count
  local from = (i - 1) * bytes
  if byte(target.rows, from + 29) % 4 >= 2 then bytes = 32 end -- removed: the prefix alone
  return sub(target.rows, from + 1, from + bytes)
end

-- On an equal order the row computed last stays: mirrors decide alike.
local function outlives(stored, row)
  local time, offset, computed = parse('<I8I8I8', stored)
  local new_time, new_offset, new_computed = parse('<I8I8I8', row)
  return time == new_time and offset == new_offset and computed > new_computed
end

local reply = {}
for i = 1, count do
  local key, value = keys[i], values[i]
  local stored = fresh[key] or before[i]
  local status = '\0'
  if stored then
    local time, offset, _, id_size = parse('<I8I8BI2', value)
    local s_time, s_offset, _, s_id_size = parse('<I8I8BI2', stored)
    if (id_size > 0 or s_id_size > 0) and sub(stored, 20, 19 + s_id_size) ~= sub(value, 20, 19 + id_size) then
      status = '\3' .. sub(stored, 1, 16)
    elseif s_time > time or (s_time == time and s_offset > offset) then
      status = '\2' .. sub(stored, 1, 16)
    elseif s_time == time and s_offset == offset then
      status = '\1'
      if fresh[key] then flush() end
      for _, target in ipairs(targets) do
        local row, old = row_of(target, i), call('HGET', target.hash, key)
        if not (old and outlives(old, row)) then call('HSET', target.hash, key, row) end
      end
    end
  end
  if status == '\0' then
    local size = #headers
    headers[size + 1], headers[size + 2], fresh[key] = key, value, value
    for _, target in ipairs(targets) do
      local pending = target.pending
      pending[size + 1], pending[size + 2] = key, row_of(target, i)
    end
    if size >= 2 * FIELDS then flush() end
  end
  reply[i] = status
end
flush()
return table.concat(reply)
