-- The leases that ran out, oldest first, unless their owners may not have had a chance to renew.
-- KEYS: leases, watch (a hash: when somebody last looked, until when to take nothing)
-- ARGV: lease in seconds

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[1], '')

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local looked = tonumber(redis.call('HGET', KEYS[2], 'looked') or 0)
redis.call('HSET', KEYS[2], 'looked', now)
if now - looked > ARGV[1] / 2 then
  -- Nobody has looked for long: the broker was away, or every worker was. Owners that live need
  -- time to renew what ran out meanwhile.
  redis.call('HSET', KEYS[2], 'grace', now + ARGV[1])
end
if now < tonumber(redis.call('HGET', KEYS[2], 'grace') or 0) then
  return {}
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
