-- Put leased messages back at the front of their queue, in the order in which they were taken.
-- KEYS: queue, leased, leases, deliveries
-- ARGV: ids, oldest first: as many as Redis may serve nobody else for

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[3], '')

for index = #ARGV, 1, -1 do
  local id = ARGV[index]
  local message = redis.call('HGET', KEYS[2], id)
  if message then
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
    -- It does not count, and is noted all the same: its next delivery is a redelivery.
    redis.call('HINCRBY', KEYS[4], redis.sha1hex(message), 0)
    redis.call('RPUSH', KEYS[1], message)
  end
end
