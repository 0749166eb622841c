-- Put delayed messages that are due in their queue, behind what waits there, first due first.
-- KEYS: those of parts/lane.lua
-- ARGV: the limits
-- Returns how many had a key: with 1,000 there may be more.
local now = time()
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)
for _, message in ipairs(due) do
  redis.call('ZREM', delayed, message)
  redis.call('LPUSH', queue, message)
end
revive(now)
return sort_due(now)
