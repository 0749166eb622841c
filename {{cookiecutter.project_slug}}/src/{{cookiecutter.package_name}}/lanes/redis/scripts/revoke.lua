-- Note that tasks are not to start any more.
-- KEYS: the revocations by time, the number of the last one
-- ARGV: seconds to keep them, how many to keep at most, then the revocations
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
-- Workers ask for those since the last one that they know: none is older, though a clock was set back, or
-- another server has taken over.
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
now = math.max(now, last[2] or 0)
for index = 3, #ARGV do
  redis.call('ZADD', KEYS[1], now, ARGV[index])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('INCR', KEYS[2])
