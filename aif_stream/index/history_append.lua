-- Merge entries into a user's history: a set in canonical order (time_kind, then key, as numbers).
-- KEYS  history    ARGV  packed entries in canonical order, entries kept, slack
-- Entry (16 bytes): time_kind u64 (below 2^53) · key u64, which a double cannot hold: compared as two halves.
-- Only the tail from the earliest new entry on is read and written, so that an event in order is an APPEND and
-- the AOF does not get the whole history each time. For the same reason the length may pass the bound by the
-- slack before it is cut back; readers take the newest entries only, which do not depend on when that happens.
-- Reply: entries dropped by a cut.
local call, unpack, sub = redis.call, struct.unpack, string.sub
local key, new = KEYS[1], ARGV[1]
local kept, slack = tonumber(ARGV[2]), tonumber(ARGV[3])

local function before(a, i, b, j) -- entry at i of a < entry at j of b
  local a_time, a_low, a_high = unpack('<I8I4I4', a, i)
  local b_time, b_low, b_high = unpack('<I8I4I4', b, j)
  if a_time ~= b_time then return a_time < b_time end
  if a_high ~= b_high then return a_high < b_high end
  return a_low < b_low
end

local length = call('STRLEN', key)
local window, start, tail = 16, length, ''
while start > 0 do
  start = math.max(0, length - window)
  tail = call('GETRANGE', key, start, -1)
  if before(tail, 1, new, 1) then break end
  window = window * 8
end

local merged, i, j, unchanged = {}, 1, 1, 1
while j <= #new do
  local entry = sub(new, j, j + 15)
  while i <= #tail and before(tail, i, new, j) do i = i + 16 end
  if sub(tail, i, i + 15) ~= entry then
    if i > unchanged then merged[#merged + 1] = sub(tail, unchanged, i - 1) end
    merged[#merged + 1] = entry
    unchanged = i
  end
  j = j + 16
end
if #merged == 0 then return 0 end
merged[#merged + 1] = sub(tail, unchanged)
local written = table.concat(merged)
call('SETRANGE', key, start, written)

local total = start + #written
if total <= (kept + slack) * 16 then return 0 end
call('SET', key, call('GETRANGE', key, total - kept * 16, -1))
return total / 16 - kept
