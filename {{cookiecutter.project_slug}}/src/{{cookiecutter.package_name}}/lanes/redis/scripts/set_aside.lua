-- Make a leased message a dead letter, and acknowledge it, in one step.
-- KEYS: leased, leases, deliveries, dead, dead messages, dead reports
-- ARGV: id, report as a JSON object that is not empty, most dead letters to keep, seconds to keep
--       them
-- Returns how many dead letters were dropped for the cap, or -1: the message was somebody else's.
local message = redis.call('HGET', KEYS[1], ARGV[1])
if not message then
  return -1
end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local number = string.match(ARGV[1], '^%d+')
local digest = redis.sha1hex(message)
local deliveries = 1 + (redis.call('HGET', KEYS[3], digest) or 0)
-- Joined as text: Redis's own JSON fails on what a message may hold, NaN or half a surrogate pair.
-- What the report itself says of deliveries comes later, and wins.
local report = string.format(
  '{"at": %.6f, "deliveries": %d, %s', now, deliveries, string.sub(ARGV[2], 2)
)
redis.call('HDEL', KEYS[3], digest)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[4], now, number)
redis.call('HSET', KEYS[5], number, message)
redis.call('HSET', KEYS[6], number, report)

-- Keep no more than the cap, nor for longer.
local surplus = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[4], 'LIMIT', 0, 1000)
local excess = redis.call('ZCARD', KEYS[4]) - #surplus - ARGV[3]
if excess > 0 then
  for _, old in ipairs(redis.call('ZRANGE', KEYS[4], #surplus, #surplus + excess - 1)) do
    surplus[#surplus + 1] = old
  end
end
for _, old in ipairs(surplus) do
  redis.call('ZREM', KEYS[4], old)
  redis.call('HDEL', KEYS[5], old)
  redis.call('HDEL', KEYS[6], old)
end
return #surplus
