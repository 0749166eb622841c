-- What a token stands for, for who consumes the queue itself and leases nothing: the message whose turn it is.
-- KEYS: those of parts/lane.lua
-- ARGV: the limits, which nobody keeps who leases nothing
-- Returns the message, or nothing.
add_tokens(1)  -- the one that was taken
local key = redis.call('ZPOPMIN', turns)[1]
if key == '' then
  key = redis.call('ZPOPMIN', turns)[1]
end
if not key then
  local message = redis.call('RPOP', plain)
  remove_tokens(1)
  return message
end
local message = leave(key)
settle(key)
ended(message and header(message, 'lane_once'), 'done')
return message
