-- Give leases their full time again; those that ran out and were taken back stay gone.
-- KEYS: leases
-- ARGV: lease in seconds, then ids
-- Returns the ids that were renewed

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[1], '')

local clock = redis.call('TIME')
local ends = clock[1] + clock[2] / 1e6 + ARGV[1]
local renewed = {}
for index = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[index]) then
    redis.call('ZADD', KEYS[1], ends, ARGV[index])
    renewed[#renewed + 1] = ARGV[index]
  end
end
return renewed
