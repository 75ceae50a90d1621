-- KEYS: the minute. ARGV: second, tokens used less tokens held. Counts while the second does.
if redis.call('HEXISTS', KEYS[1], 't' .. ARGV[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 't' .. ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[2])
end
