-- Leased messages are not due yet: put them where the delayed ones wait.
-- KEYS: leased, leases, then those of parts/lane.lua
-- ARGV: id, when it is due in seconds since 1970, id, ..., then the limits

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[2], '')

for index = 1, #ARGV, 2 do
  local message = redis.call('HGET', KEYS[1], ARGV[index])
  if message then
    redis.call('HDEL', KEYS[1], ARGV[index])
    redis.call('ZREM', KEYS[2], ARGV[index])
    unmark(ARGV[index], true)
    hold_again(message)
    until_due(message, ARGV[index + 1])
  end
end
finish()
