-- Put delayed messages that are due in their queue, behind what waits there, first due first.
-- KEYS: queue, delayed
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
for _, message in ipairs(due) do
  redis.call('ZREM', KEYS[2], message)
  redis.call('LPUSH', KEYS[1], message)
end
