-- Give leases their full time again; those that ran out and were taken back stay gone.
-- KEYS: leases, workers (a hash: who is at work, by owner)
-- ARGV: lease in seconds, owner or '', what to note of the owner, then ids
-- Returns the server's time, then the ids that were renewed

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[1], '')

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local reply = {string.format('%.6f', now)}
for index = 4, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[index]) then
    redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[index])
    reply[#reply + 1] = ARGV[index]
  end
end
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], reply[1] .. ' ' .. ARGV[3])
end
return reply
