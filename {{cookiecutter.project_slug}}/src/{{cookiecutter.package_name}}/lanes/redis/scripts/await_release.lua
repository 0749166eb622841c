-- A leased message is of a task that this worker does not know: a newer release's may know it.
-- KEYS: leased, leases, deliveries, then those of parts/lane.lua
-- ARGV: id, seconds to wait for such a worker at all, seconds until the next try at the least, at the most,
--       the limits
-- Returns seconds until the next try (as text), or '' when it has waited for long enough.
local message = redis.call('HGET', KEYS[1], ARGV[1])
if not message then
  return ARGV[3]  -- somebody else has it
end
local now = time()
local digest = redis.sha1hex(message)
local since = tonumber(redis.call('HGET', KEYS[3], 'unknown:' .. digest) or now)
local waited = now - since
if waited >= tonumber(ARGV[2]) then
  return ''
end
local wait = math.max(tonumber(ARGV[3]), math.min(waited, tonumber(ARGV[4]), ARGV[2] - waited))
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
unmark(ARGV[1], true)
hold_again(message)
message = until_due(message, now + wait)
redis.call('HSET', KEYS[3], 'unknown:' .. redis.sha1hex(message), string.format('%.6f', since))
finish()
return string.format('%.6f', wait)
