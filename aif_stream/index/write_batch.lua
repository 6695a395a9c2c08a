-- A live write of one bucket: features and the rows of every listed version, or nothing at all.
-- KEYS  items, versions, rows of each version brought
-- ARGV  packed items, then per version brought: its name, its packed rows (one fixed size)
-- Packed item: key (8) · size u32 · value; the value begins with time u64 · offset u64 · flags u8 · id size u16.
-- Reply: one byte per item (0 written, 1 equal, 2 older, 3 collision), 2 and 3 followed by the stored time and
-- offset; or the error VERSIONMISSING with the names that were not brought (then nothing was written).
-- Orders are numbers (doubles, exact below 2^53, checked by the caller): Lua compares strings by locale.
local call, unpack, sub = redis.call, struct.unpack, string.sub
local items, packed = KEYS[1], ARGV[1]

local targets, missing = {}, {}
for _, name in ipairs(call('SMEMBERS', KEYS[2])) do
  local found
  for i = 2, #ARGV, 2 do
    if ARGV[i] == name then found = i end
  end
  if found then
    targets[#targets + 1] = {KEYS[2 + found / 2], ARGV[found + 1]}
  else
    missing[#missing + 1] = name
  end
end
if #missing > 0 then
  return redis.error_reply('VERSIONMISSING ' .. table.concat(missing, ' '))
end

local count, at = 0, 1
while at <= #packed do
  local _, size, body = unpack('<c8I4', packed, at)
  count, at = count + 1, body + size
end

-- On an equal order the row computed last stays: mirrors decide alike.
local function outlives(stored, row)
  local time, offset, computed = unpack('<I8I8I8', stored)
  local new_time, new_offset, new_computed = unpack('<I8I8I8', row)
  return time == new_time and offset == new_offset and computed > new_computed
end

local reply = {}
at = 1
for i = 1, count do
  local key, value, next_at = unpack('<c8I4c0', packed, at)
  at = next_at
  local time, offset, _, id_size = unpack('<I8I8BI2', value)
  local stored = call('HGET', items, key)
  local status, equal = '\0', false
  if stored then
    local s_time, s_offset, _, s_id_size = unpack('<I8I8BI2', stored)
    if (id_size > 0 or s_id_size > 0) and sub(stored, 20, 19 + s_id_size) ~= sub(value, 20, 19 + id_size) then
      status = '\3' .. sub(stored, 1, 16)
    elseif s_time > time or (s_time == time and s_offset > offset) then
      status = '\2' .. sub(stored, 1, 16)
    elseif s_time == time and s_offset == offset then
      status, equal = '\1', true
    end
  end
  if status == '\0' or equal then
    for _, target in ipairs(targets) do
      local bytes = #target[2] / count
      local row = sub(target[2], (i - 1) * bytes + 1, i * bytes)
      if math.floor(string.byte(row, 29) / 2) % 2 == 1 then row = sub(row, 1, 32) end -- removed: the prefix alone
      local old = equal and call('HGET', target[1], key)
      if not (old and outlives(old, row)) then call('HSET', target[1], key, row) end
    end
    -- The header last: should Redis refuse a row, the event still counts as new when it comes again.
    if not equal then call('HSET', items, key, value) end
  end
  reply[i] = status
end
return table.concat(reply)
