-- Leased messages are not due yet: put them where the delayed ones wait.
-- KEYS: leased, leases, delayed
-- ARGV: id, when it is due in seconds since 1970, id, ...

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[2], '')

for index = 1, #ARGV, 2 do
  local message = redis.call('HGET', KEYS[1], ARGV[index])
  if message then
    redis.call('HDEL', KEYS[1], ARGV[index])
    redis.call('ZREM', KEYS[2], ARGV[index])
    -- A set holds the same bytes once; a space after it changes nothing of what JSON says.
    while redis.call('ZSCORE', KEYS[3], message) do
      message = message .. ' '
    end
    redis.call('ZADD', KEYS[3], ARGV[index + 1], message)
  end
end
