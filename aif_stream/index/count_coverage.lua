-- How a version covers one part of a bucket's items, looked at in one step.
-- KEYS  items, rows of the version    ARGV  cursor, fields per step
-- Reply: next cursor, living items, of those without a row, with a row of another order, with an invalid row
local step = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local flat, living, headers = step[2], {}, {}
for i = 1, #flat, 2 do
  local item = flat[i + 1]
  if string.byte(item, 17) % 2 == 0 then  -- not removed
    living[#living + 1] = flat[i]
    headers[#headers + 1] = string.sub(item, 1, 16)
  end
end
local missing, other, invalid = 0, 0, 0
for first = 1, #living, 1000 do
  local last = math.min(first + 999, #living)
  local rows = redis.call('HMGET', KEYS[2], unpack(living, first, last))
  for i = 1, #rows do
    if not rows[i] then
      missing = missing + 1
    elseif string.sub(rows[i], 1, 16) ~= headers[first + i - 1] then
      other = other + 1
    elseif string.byte(rows[i], 29) % 2 == 0 then  -- flags, without VALID
      invalid = invalid + 1
    end
  end
end
return {step[1], #living, missing, other, invalid}
