-- KEYS  mark    ARGV  expected value ('' for none), new value    Reply: 1 advanced, 0 somebody else was here
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
