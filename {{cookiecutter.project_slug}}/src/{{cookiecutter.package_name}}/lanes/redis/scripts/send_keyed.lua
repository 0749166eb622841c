-- Send many messages that have a key, and no lock.
-- KEYS: those of parts/lane.lua
-- ARGV: when they are due, in seconds since 1970, or ''; for each key: the key, how many messages, and these;
--       then the limits

-- First what a server without memory refuses: then nothing was done.
redis.call('HSET', state, 'sent', 1)

local due, index = ARGV[1], 2
while index < #ARGV do
  local key, count = ARGV[index], tonumber(ARGV[index + 1])
  local first, last = index + 2, index + 1 + count
  if due == '' then
    enter(key, unpack(ARGV, first, last))
  else
    for each = first, last do
      until_due(ARGV[each], due)
    end
  end
  index = last + 1
end
finish()
