-- When some of the messages that wait were sent, and were due: those at both ends of each list, and the first
-- of each key whose turn is next; of keys at a limit of theirs, none.
-- KEYS: the queue and its lists for lower priorities, then those of parts/lane.lua
-- ARGV: the header with the time of sending; most messages to look at from each end, most bytes of them; the
--       limits
-- Returns time of sending and `eta`, as the messages say them or '', of each that says when it was sent
local most, size = tonumber(ARGV[2]), tonumber(ARGV[3])
local sent_at, eta = '"' .. ARGV[1] .. '":%s*([^,}%s]+)', '"eta":%s*"([^"]*)"'
local reply = {}
local function say(message)
  -- Texts in a message are quoted, so that none of what they hold looks like this.
  local sent = string.match(message, sent_at)
  if sent then
    reply[#reply + 1] = sent
    reply[#reply + 1] = string.match(message, eta) or ''
  end
end

for _, key in ipairs(redis.call('LRANGE', turns, -most, -1)) do
  local first = redis.call('LINDEX', messages .. key, -1)
  if first then
    say(first)
  end
end

for _, key in ipairs(KEYS) do
  local length = redis.call('LLEN', key)
  -- What is taken next is on the right. From the left, no further than to what was looked at already.
  local right, rest = math.min(most, length), math.min(most, length - most)
  for _, last in ipairs({ {-1, -1, right}, {0, 1, rest} }) do
    local position, step, left, bytes = last[1], last[2], last[3], size
    while left > 0 and bytes > 0 do
      local message = redis.call('LINDEX', key, position)
      say(message)
      position, left, bytes = position + step, left - 1, bytes - #message
    end
  end
end
return reply
