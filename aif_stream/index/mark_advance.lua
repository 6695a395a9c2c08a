-- KEYS  mark    ARGV  expected value ('' for none), new value, run id of the server it was read on ('' for any)
-- Reply: 1 advanced, 0 somebody else was here, or this server has been started since
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
