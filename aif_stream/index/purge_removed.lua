-- Forget tombstones that are old enough and still the same.
-- KEYS  items, rows of each version    ARGV  packed: key (8) · time u64 · offset u64    Reply: how many went
local gone = 0
for at = 1, #ARGV[1], 24 do
  local key, header = struct.unpack('<c8c16', ARGV[1], at)
  local stored = redis.call('HGET', KEYS[1], key)
  if stored and string.sub(stored, 1, 16) == header and string.byte(stored, 17) % 2 == 1 then
    for i = 2, #KEYS do redis.call('HDEL', KEYS[i], key) end
    redis.call('HDEL', KEYS[1], key)
    gone = gone + 1
  end
end
return gone
