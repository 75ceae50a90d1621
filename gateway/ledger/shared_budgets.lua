-- Budgets that several processes count together. Each operation happens wholly or not at all.
--
-- KEYS[1]   hash: request id -> hold, of the requests of one gateway; '' where one has ended while
--           one of its counters was not counted: whoever counts it and thinks it open is late
-- KEYS[2..] hash per budget and period:
--             used, held                 pico-USD of all gateways; held is a part of used
--             used:N, held:N, changes:N  the part of gateway N, and how often it has changed
--             gateways                   how many have counted their books into it
--
-- Amounts are decimal texts that only Redis adds, as 64-bit integers. Lua's numbers are doubles: they
-- would be inexact above 2^53, about 9,007 USD. Of a sum Lua looks at nothing but the sign.

local operation, gateway = ARGV[1], ARGV[2]
local used, held, changes = 'used:' .. gateway, 'held:' .. gateway, 'changes:' .. gateway

local function negated(amount)
  if amount == '0' then return amount end
  if amount:sub(1, 1) == '-' then return amount:sub(2) end
  return '-' .. amount
end

local function add(counter, used_amount, held_amount)
  redis.call('HINCRBY', counter, 'used', used_amount)
  redis.call('HINCRBY', counter, 'held', held_amount)
  redis.call('HINCRBY', counter, used, used_amount)
  redis.call('HINCRBY', counter, held, held_amount)
  redis.call('HINCRBY', counter, changes, 1)
end

local function counted(counter)
  return redis.call('HEXISTS', counter, changes) == 1
end

-- reserve, gateway, gateways, request id, hold, amount, then per counter amount - limit ('' = soft)
local function reserve()
  local gateways, request, hold, amount = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
  if redis.call('HEXISTS', KEYS[1], request) == 1 then return {'held'} end
  for i = 2, #KEYS do
    local over = ARGV[5 + i]
    if over ~= '' then
      local known = tonumber(redis.call('HGET', KEYS[i], 'gateways') or '0')
      if known < gateways or not counted(KEYS[i]) then return {'uncounted', i - 2} end
      local lacks = redis.call('HINCRBY', KEYS[i], 'used', over) > 0
      redis.call('HINCRBY', KEYS[i], 'used', negated(over))
      if lacks then
        local found = redis.call('HMGET', KEYS[i], 'used', 'held')
        return {'lacks', i - 2, found[1], found[2]}
      end
    end
  end
  for i = 2, #KEYS do
    if counted(KEYS[i]) then add(KEYS[i], amount, amount) end
  end
  redis.call('HSET', KEYS[1], request, hold)
  return {'held'}
end

-- settle, gateway, request id, amount less what stays held, charge less that
local function settle()
  local hold = redis.call('HGET', KEYS[1], ARGV[3])
  if not hold or hold == '' then return 0 end
  redis.call('HDEL', KEYS[1], ARGV[3])
  for i = 2, #KEYS do
    if counted(KEYS[i]) then
      add(KEYS[i], ARGV[5], negated(ARGV[4]))
    else
      redis.call('HSET', KEYS[1], ARGV[3], '')
    end
  end
  return 1
end

-- count, gateway, changes seen ('' = never counted), used, held, life of the key in ms, then holds:
-- request id, hold. Replaces this gateway's part, unless it has changed since it was looked at. A
-- counter that cannot be added to (beyond 64 bits, or no number) goes, and is counted anew by all.
local function count()
  local counter = KEYS[2]
  local before = redis.call('HMGET', counter, changes, used, held)
  if (before[1] or '') ~= ARGV[3] then return 0 end
  for i = 7, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == '' then return 0 end
  end
  if not before[1] then redis.call('HINCRBY', counter, 'gateways', 1) end
  local added = pcall(add, counter, negated(before[2] or '0'), negated(before[3] or '0'))
  if not (added and pcall(add, counter, ARGV[4], ARGV[5])) then
    redis.call('DEL', counter)
    return 0
  end
  redis.call('PEXPIRE', counter, ARGV[6])
  for i = 7, #ARGV, 2 do
    redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1])
  end
  return 1
end

if operation == 'reserve' then return reserve() end
if operation == 'settle' then return settle() end
return count()
