-- Make a leased message a dead letter, and acknowledge it, in one step.
-- KEYS: those of parts/letters.lua, then leased, leases, deliveries, then those of
--       parts/lane.lua
-- ARGV: id; report as a JSON object that is not empty; '1' if its task ran, else ''; most dead letters to
--       keep; most bytes of them, messages and reports; seconds to keep those that ran; the limits
-- Returns how many dead letters were dropped, all of tasks that ran; -1: the message was somebody else's;
-- -2: its task never ran, and there is no room, since what never ran is not dropped. Then nothing was done.

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[7], '')

local message = redis.call('HGET', KEYS[6], ARGV[1])
if not message then
  return -1
end
local ran, cap, size = ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5])
count_anew()
if not ran and (total('never') >= cap or total('never_bytes') >= size) then
  return -2
end
local now = time()
local number = string.match(ARGV[1], '^%d+')
local digest = redis.sha1hex(message)
local deliveries = 1 + (redis.call('HGET', KEYS[8], digest) or 0)
-- Joined as text: Redis's own JSON fails on what a message may hold, NaN or half a surrogate pair.
-- What the report itself says of deliveries comes later, and wins.
local report = string.format(
  '{"at": %.6f, "deliveries": %d, %s', now, deliveries, string.sub(ARGV[2], 2)
)
-- Kept first, then acknowledged: what a script has done is not undone when a later command fails.
redis.call('ZADD', KEYS[1], now, number)
redis.call('HSET', KEYS[2], number, message)
redis.call('HSET', KEYS[3], number, report)
count(number, now, ran)
redis.call('HDEL', KEYS[8], digest, 'unknown:' .. digest)
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('ZREM', KEYS[7], ARGV[1])
ended(unmark(ARGV[1]), 'undone')

-- Keep no more than there is room for, nor for longer: of tasks that ran, the oldest go first, and the one
-- that has just come stays. No more than 1,000 in one step, while which Redis serves nobody else.
local dropped = 0
while dropped < 1000 do
  local oldest = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
  local too_many = total('ran') + total('never') > cap
  local too_big = total('ran_bytes') + total('never_bytes') > size
  local is_needed = #oldest > 0 and (too_many or too_big or tonumber(oldest[2]) <= now - ARGV[6])
  if not is_needed or oldest[1] == number then
    break
  end
  dropped = dropped + forget(oldest[1])
end
finish()
return dropped
