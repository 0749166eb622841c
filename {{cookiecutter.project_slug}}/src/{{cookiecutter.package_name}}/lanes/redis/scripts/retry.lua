-- Put dead letters back in their queue, behind what waits there.
-- KEYS: queue, dead, dead messages, dead reports
-- ARGV: number, message, number, message, ...
-- Returns how many went back; the others were gone already.
local count = 0
for index = 1, #ARGV, 2 do
  if redis.call('ZREM', KEYS[2], ARGV[index]) == 1 then
    redis.call('HDEL', KEYS[3], ARGV[index])
    redis.call('HDEL', KEYS[4], ARGV[index])
    redis.call('LPUSH', KEYS[1], ARGV[index + 1])
    count = count + 1
  end
end
return count
