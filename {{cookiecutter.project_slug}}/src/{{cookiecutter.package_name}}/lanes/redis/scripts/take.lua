-- What a token stands for, for who consumes the queue itself and leases nothing: the message whose turn it is.
-- KEYS: those of parts/lane.lua
-- ARGV: '', or a message with a lock that was taken itself; the limits, which nobody keeps who leases nothing
-- Returns the message, or nothing. Its lock goes.

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', delayed, '')

if ARGV[1] ~= '' then
  count_locked(ARGV[1], -1)
  ended(header(ARGV[1], 'lane_once'), 'done')
  finish()
  return ARGV[1]
end
redis.call('HINCRBY', state, 'removed', 1)  -- the one that was taken
owed = owed + 1
local key = redis.call('RPOP', turns)
if key == '' then
  redis.call('HDEL', state, 'plain_in_turns')
  key = redis.call('RPOP', turns)
end
local message
if key then
  message = leave(key)
  settle(key, true)
else
  message = redis.call('RPOP', plain)
  owed = owed - 1
end
if message then
  ended(header(message, 'lane_once'), 'done')
end
finish()
return message
