-- A rebuild's write of one bucket and version: a row counts only while the item's header is the one it was read with.
-- KEYS  items, versions, rows
-- ARGV  version, packed expectations: key (8) · time u64 · offset u64, packed rows (one fixed size)
-- Reply: one byte per row (1 in place, 0 not: the item changed meanwhile); or the error VERSIONUNLISTED, for then
-- no live write brings the rows that this one leaves out (then nothing was written).
local call, unpack, sub = redis.call, struct.unpack, string.sub
local packed, rows = ARGV[2], ARGV[3]
local count = #packed / 24
if call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return redis.error_reply('VERSIONUNLISTED ' .. ARGV[1]) end

local bytes, reply = #rows / count, {}
for i = 1, count do
  local key, header = unpack('<c8c16', packed, (i - 1) * 24 + 1)
  local stored = call('HGET', KEYS[1], key)
  if stored and sub(stored, 1, 16) == header then
    local row = sub(rows, (i - 1) * bytes + 1, i * bytes)
    if math.floor(string.byte(row, 29) / 2) % 2 == 1 then row = sub(row, 1, 32) end
    local old = call('HGET', KEYS[3], key)
    -- A live write of the same event may have been here; the row computed last stays, as in write_batch.lua.
    if not old or sub(old, 1, 16) ~= header or unpack('<I8', old, 17) <= unpack('<I8', row, 17) then
      call('HSET', KEYS[3], key, row)
    end
    reply[i] = '\1'
  else
    reply[i] = '\0'
  end
end
return table.concat(reply)
