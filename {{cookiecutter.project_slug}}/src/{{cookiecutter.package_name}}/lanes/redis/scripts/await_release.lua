-- A leased message is of a task that this worker does not know: a newer release's may know it.
-- KEYS: leased, leases, delayed, deliveries
-- ARGV: id, seconds to wait for such a worker at all, seconds until the next try at the least, at the most
-- Returns seconds until the next try (as text), or '' when it has waited for long enough.
local message = redis.call('HGET', KEYS[1], ARGV[1])
if not message then
  return ARGV[3]  -- somebody else has it
end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local digest = redis.sha1hex(message)
local since = tonumber(redis.call('HGET', KEYS[4], 'unknown:' .. digest) or now)
local waited = now - since
if waited >= tonumber(ARGV[2]) then
  return ''
end
local wait = math.max(tonumber(ARGV[3]), math.min(waited, tonumber(ARGV[4]), ARGV[2] - waited))
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
-- A set holds the same bytes once; a space after it changes nothing of what JSON says.
while redis.call('ZSCORE', KEYS[3], message) do
  message = message .. ' '
end
redis.call('HSET', KEYS[4], 'unknown:' .. redis.sha1hex(message), string.format('%.6f', since))
redis.call('ZADD', KEYS[3], now + wait, message)
return string.format('%.6f', wait)
