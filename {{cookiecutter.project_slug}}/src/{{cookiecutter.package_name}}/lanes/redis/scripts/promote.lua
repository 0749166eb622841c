-- Put delayed messages that are due behind what waits already, first due first.
-- KEYS: those of parts/lane.lua
-- ARGV: "all", or "keyed" for those with a key alone; the limits
-- Returns how many had a key: with 1,000 there may be more.
local now = time()
if ARGV[1] == 'all' then
  for _, message in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', delayed, message)
    redis.call('LPUSH', queue, message)
  end
end
revive(now)
local sorted = sort_due(now)
-- A worker of a release without keys may have ended leases, and not known of their places.
local swept = redis.call('HSCAN', marks, redis.call('HGET', state, 'swept') or '0', 'COUNT', 200)
for index = 1, #swept[2], 2 do
  if redis.call('HEXISTS', lane .. 'leased', swept[2][index]) == 0 then
    ended(unmark(swept[2][index]), 'undone')
  end
end
if #swept[2] > 0 then
  redis.call('HSET', state, 'swept', swept[1])
end
finish()
return sorted
