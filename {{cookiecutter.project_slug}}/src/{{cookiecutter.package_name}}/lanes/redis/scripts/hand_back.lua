-- Put leased messages back at the front of their queue, in the order in which they were taken.
-- KEYS: leased, leases, deliveries, then those of parts/lane.lua
-- ARGV: ids, oldest first: as many as Redis may serve nobody else for; then the limits

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[2], '')

for index = #ARGV, 1, -1 do
  local id = ARGV[index]
  local message = redis.call('HGET', KEYS[1], id)
  if message then
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    -- It does not count, and is noted all the same: its next delivery is a redelivery.
    redis.call('HINCRBY', KEYS[3], redis.sha1hex(message), 0)
    unmark(id)
    hold_again(message)
    to_front(message)
  end
end
finish()
