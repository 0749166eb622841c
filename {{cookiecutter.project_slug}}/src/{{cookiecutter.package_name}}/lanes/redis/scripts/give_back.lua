-- A worker could not handle a leased message: count that, and have it wait, longer each time.
-- KEYS: leased, leases, deliveries, then those of parts/lane.lua
-- ARGV: id, seconds to wait after the first time, deliveries that are too many, the limits
-- Returns 0 for a message that was delivered too often, which stays leased, else 1

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[2], '')

local message = redis.call('HGET', KEYS[1], ARGV[1])
if not message then
  return 1
end
local digest = redis.sha1hex(message)
local deliveries = 1 + (redis.call('HGET', KEYS[3], digest) or 0)
if deliveries >= tonumber(ARGV[3]) then
  return 0
end
redis.call('HDEL', KEYS[3], digest)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
unmark(ARGV[1])
hold_again(message)
message = until_due(message, time() + ARGV[2] * deliveries)
redis.call('HSET', KEYS[3], redis.sha1hex(message), deliveries)
finish()
return 1
