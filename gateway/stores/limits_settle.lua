-- KEYS: the minute, the running requests. ARGV: second, tokens used less tokens held, lease.
-- The correction counts while its second does.
if redis.call('HEXISTS', KEYS[1], 't' .. ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 't' .. ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[2])
end
redis.call('ZREM', KEYS[2], ARGV[3])
