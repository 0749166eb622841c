-- Put leased messages back at the front of their queue, in the order in which they were taken.
-- KEYS: queue, leased, leases, deliveries
-- ARGV: how many deliveries make a message poison (0: do not count this one), "expired" to pass
--       over leases that have been renewed since, then ids, oldest first
-- Returns {how many went back, and of each that is poison, which stays: id, deliveries, message}

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[3], '')

local most = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local result = {0}
for index = #ARGV, 3, -1 do
  local id = ARGV[index]
  local message = redis.call('HGET', KEYS[2], id)
  local ends = tonumber(redis.call('ZSCORE', KEYS[3], id) or 0)
  if message and (ARGV[2] ~= 'expired' or ends <= now) then
    local deliveries = 0
    if most > 0 then
      deliveries = redis.call('HINCRBY', KEYS[4], redis.sha1hex(message), 1)
    end
    if most > 0 and deliveries >= most then
      result[#result + 1] = id
      result[#result + 1] = deliveries
      result[#result + 1] = message
    else
      redis.call('HDEL', KEYS[2], id)
      redis.call('ZREM', KEYS[3], id)
      redis.call('RPUSH', KEYS[1], message)
      result[1] = result[1] + 1
    end
  end
end
return result
