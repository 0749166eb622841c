-- Put leased messages back at the front of their queue, in the order in which they were taken.
-- KEYS: queue, leased, leases
-- ARGV: ids, oldest first

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[3], '')

for index = #ARGV, 1, -1 do
  local id = ARGV[index]
  local message = redis.call('HGET', KEYS[2], id)
  if message then
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
    redis.call('RPUSH', KEYS[1], message)
  end
end
