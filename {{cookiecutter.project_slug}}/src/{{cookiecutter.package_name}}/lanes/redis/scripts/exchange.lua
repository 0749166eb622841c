-- Acknowledge what is done, and take as many messages as there are free slots for.
-- KEYS: queue, delayed, paused, sequence, leased, leases, deliveries, revocations, then the queue's
--       lists for lower priorities
-- ARGV: how many to take, lease in seconds, owner, the last lease's number that it knows, then ids of
--       messages that are done with
-- Returns the server's time, the number of the last revocation, and "paused", or of each new lease: id,
-- message, and '1' when somebody else may have had it before, or ''.
local wanted = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local reply = {string.format('%.6f', now), redis.call('GET', KEYS[8]) or ''}

-- 0. A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[6], '')

-- 1. Done: the message, its lease, and what is known of it if it ever came back.
local counted = redis.call('EXISTS', KEYS[7]) == 1
if #ARGV > 4 then
  for index = 5, #ARGV do
    local id = ARGV[index]
    local message = counted and redis.call('HGET', KEYS[5], id)
    if message then
      local digest = redis.sha1hex(message)
      redis.call('HDEL', KEYS[7], digest, 'unknown:' .. digest)
    end
    redis.call('HDEL', KEYS[5], id)
    redis.call('ZREM', KEYS[6], id)
  end
end
if wanted == 0 then
  return reply
end

-- 2. A paused lane keeps what it has.
if redis.call('EXISTS', KEYS[3]) == 1 then
  reply[3] = 'paused'
  return reply
end

-- 3. Half from what is due, first due first, and half from the queue; where one has fewer, more of the
--    other. With an odd number they take turns, by the number of the lease, so that neither starves.
-- A server that lost its data would count anew, while the owner works on leases of those numbers.
local number = math.max(redis.call('GET', KEYS[4]) or 0, ARGV[4])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, wanted)
local share = math.min(#due, math.floor((wanted + number % 2) / 2))
local messages = {}
for index = 1, #KEYS do
  if (index == 1 or index > 8) and #messages < wanted - share then
    for _, message in ipairs(redis.call('RPOP', KEYS[index], wanted - share - #messages) or {}) do
      messages[#messages + 1] = message
    end
  end
end
share = math.min(#due, wanted - #messages)
if share > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, share - 1)
end
if share + #messages == 0 then
  return reply
end

-- 4. Lease them in the same step, those that were due before the others.
redis.call('SET', KEYS[4], string.format('%.0f', number + share + #messages))
local function lease(message)
  number = number + 1
  local id = string.format('%.0f@%s', number, ARGV[3])
  redis.call('HSET', KEYS[5], id, message)
  redis.call('ZADD', KEYS[6], now + ARGV[2], id)
  reply[#reply + 1] = id
  reply[#reply + 1] = message
  local again = counted and redis.call('HEXISTS', KEYS[7], redis.sha1hex(message)) == 1
  reply[#reply + 1] = again and '1' or ''
end
for index = 1, share do
  lease(due[index])
end
for _, message in ipairs(messages) do
  lease(message)
end
return reply
