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
finish()
return sorted
