-- Send messages that have a key, or that are sent once.
-- KEYS: those of parts/lane.lua
-- ARGV: when they are due, in seconds since 1970, or '', then the messages, then the limits
-- Returns of each '' when it was sent, or the id of the task that holds its lock.

-- First what a server without memory refuses: then nothing was done.
redis.call('HSET', state, 'sent', 1)

local reply = {}
for index = 2, #ARGV do
  reply[#reply + 1] = send_once(ARGV[index], ARGV[1])
end
finish()
return reply
