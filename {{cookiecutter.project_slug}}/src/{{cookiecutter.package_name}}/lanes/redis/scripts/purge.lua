-- Delete some of the messages that wait, or are delayed, with their counts of deliveries.
-- KEYS: delayed, deliveries, then the queue and its lists for lower priorities
-- ARGV: "waiting" for what may be fetched, in the queue or due; or "delayed" for what is not due; most to
--       delete
-- Returns how many there were
redis.call('ZREM', KEYS[1], '')

local clock = redis.call('TIME')
local now = string.format('%.6f', clock[1] + clock[2] / 1e6)
local most = tonumber(ARGV[2])
local from, to = '(' .. now, '+inf'
local messages = {}
if ARGV[1] == 'waiting' then
  from, to = '-inf', now
  for index = 3, #KEYS do
    if #messages < most then
      for _, message in ipairs(redis.call('RPOP', KEYS[index], most - #messages) or {}) do
        messages[#messages + 1] = message
      end
    end
  end
end
if #messages < most then
  local found = redis.call('ZRANGEBYSCORE', KEYS[1], from, to, 'LIMIT', 0, most - #messages)
  for _, message in ipairs(found) do
    redis.call('ZREM', KEYS[1], message)
    messages[#messages + 1] = message
  end
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  for _, message in ipairs(messages) do
    local digest = redis.sha1hex(message)
    redis.call('HDEL', KEYS[2], digest, 'unknown:' .. digest)
  end
end
return #messages
