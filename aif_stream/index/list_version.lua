-- List a version in one bucket, unless it was retired there: a worker that was away may still take it for a live one.
-- KEYS  versions, retired
-- ARGV  version
-- Reply: 1 listed, 0 retired (then nothing was written)
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then return 0 end
redis.call('SADD', KEYS[1], ARGV[1])
return 1
