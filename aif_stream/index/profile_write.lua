-- KEYS  profile    ARGV  value, beginning with time u64 · offset u64
-- Reply: one byte (0 written, 1 equal, 2 older), 2 followed by the stored time and offset.
local stored = redis.call('GETRANGE', KEYS[1], 0, 15)
if #stored == 16 then
  local s_time, s_offset = struct.unpack('<I8I8', stored)
  local time, offset = struct.unpack('<I8I8', ARGV[1])
  if s_time > time or (s_time == time and s_offset > offset) then return '\2' .. stored end
  if s_time == time and s_offset == offset then return '\1' end
end
redis.call('SET', KEYS[1], ARGV[1])
return '\0'
