-- Take one request, its tokens and one slot of a tenant's limits, or nothing at all.
-- The same rules as limits.py, which is what the tests compare this with.
--
-- KEYS: the minute (a hash), the running requests (a sorted set of leases by their end, in ms)
-- ARGV: requests per minute, tokens per minute, concurrent (each -1: unlimited), tokens to hold,
--       lease, its length in ms, the time in us (0: Redis' own), requests and tokens that were
--       admitted without us and are not counted yet
-- What frees memory comes after what takes some: a full Redis refuses before anything is written.
-- Returns {0, requests, tokens, now in us, second} or {1} too many at once,
--         {2, wait in us} no tokens left, {3, wait in us} no requests left
local WINDOW = 60
local minute, running = KEYS[1], KEYS[2]
local requests_max, tokens_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local concurrent_max, ask = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, lease_ms, now_us = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
if now_us == 0 then
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
end

-- What the last minute has seen: sums, and amounts by second in r<second> and t<second>.
local now_ms, second = math.floor(now_us / 1000), math.floor(now_us / 1000000)
local known = redis.call('HMGET', minute, 'oldest', 'newest', 'requests', 'tokens')
local oldest, newest = tonumber(known[1] or second), tonumber(known[2] or second)
local requests, tokens = tonumber(known[3] or 0), tonumber(known[4] or 0)

local function count(more_requests, more_tokens)
  requests, tokens = requests + more_requests, tokens + more_tokens
  local here = redis.call('HMGET', minute, 'r' .. second, 't' .. second)
  redis.call('HSET', minute, 'oldest', oldest, 'newest', second,
    'requests', requests, 'tokens', tokens,
    'r' .. second, (here[1] or 0) + more_requests, 't' .. second, (here[2] or 0) + more_tokens)
  redis.call('EXPIRE', minute, 2 * WINDOW)
end

if second < newest then
  if newest - second > WINDOW then
    -- The clock was set back: all that is counted counts as of now, and is over in a minute.
    local seen_requests, seen_tokens = requests, tokens
    redis.call('DEL', minute)
    oldest, newest, requests, tokens = second, second, 0, 0
    count(seen_requests, seen_tokens)
  else
    second, now_us = newest, newest * 1000000
  end
end
local live = second - WINDOW
if oldest < live then
  if newest < live then
    redis.call('DEL', minute)
    oldest, requests, tokens = live, 0, 0
  end
  local gone = oldest
  for old = gone, live - 1 do
    local counted = redis.call('HMGET', minute, 'r' .. old, 't' .. old)
    requests, tokens = requests - (counted[1] or 0), tokens - (counted[2] or 0)
  end
  oldest = live
  count(0, 0)
  for old = gone, live - 1 do redis.call('HDEL', minute, 'r' .. old, 't' .. old) end
end

local function refuse(status, kind, over)
  local fields = {}
  for s = oldest, second do fields[#fields + 1] = kind .. s end
  for i, amount in ipairs(redis.call('HMGET', minute, unpack(fields))) do
    over = over - (amount or 0)
    if over <= 0 then return {status, (oldest + i + WINDOW) * 1000000 - now_us} end
  end
  return {status, WINDOW * 1000000}
end

if ARGV[8] ~= '0' or ARGV[9] ~= '0' then count(ARGV[8], ARGV[9]) end
if concurrent_max >= 0 then
  -- No lease ends later than a new one, unless the clock was set back.
  for _, late in ipairs(redis.call('ZRANGEBYSCORE', running, '(' .. now_ms + lease_ms, '+inf')) do
    redis.call('ZADD', running, now_ms + lease_ms, late)
  end
  if redis.call('ZCOUNT', running, '(' .. now_ms, '+inf') >= concurrent_max then return {1} end
end
if tokens_max >= 0 and tokens + ask > tokens_max then
  return refuse(2, 't', tokens + ask - tokens_max)
end
if requests_max >= 0 and requests + 1 > requests_max then
  return refuse(3, 'r', requests + 1 - requests_max)
end
if requests_max >= 0 or tokens_max >= 0 then
  count(requests_max >= 0 and 1 or 0, tokens_max >= 0 and ask or 0)
end
if concurrent_max >= 0 then
  redis.call('ZADD', running, now_ms + lease_ms, lease)
  redis.call('ZREMRANGEBYSCORE', running, '-inf', now_ms)
  redis.call('PEXPIRE', running, 2 * lease_ms)
end
return {0, requests, tokens, now_us, second}
