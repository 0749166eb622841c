-- Tell which messages are done with, and take as many as there are free slots for.
-- KEYS: queue, delayed, paused, sequence, leased, leases, deliveries, then the queue's lists for lower
--       priorities
-- ARGV: how many to take, lease in seconds, owner, the last lease's number that it knows, then ids of
--       messages that are done with
-- Returns {"paused"}, or the new leases: {id, message, id, message, ...}
local wanted = tonumber(ARGV[1])

-- 0. A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[6], '')

-- 1. Done with: the message, its lease, and its count of deliveries if it ever came back.
if #ARGV > 4 then
  local counted = redis.call('EXISTS', KEYS[7]) == 1
  for index = 5, #ARGV do
    local id = ARGV[index]
    local message = counted and redis.call('HGET', KEYS[5], id)
    if message then
      redis.call('HDEL', KEYS[7], redis.sha1hex(message))
    end
    redis.call('HDEL', KEYS[5], id)
    redis.call('ZREM', KEYS[6], id)
  end
end
if wanted == 0 then
  return {}
end

-- 2. What is due goes to the front: it has waited long enough.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
for _, message in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('RPUSH', KEYS[1], message)
  redis.call('ZREM', KEYS[2], message)
end

-- 3. A paused lane keeps what it has.
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {'paused'}
end

-- 4. Take, and lease in the same step.
local messages = redis.call('RPOP', KEYS[1], wanted) or {}
for index = 8, #KEYS do
  if #messages < wanted then
    for _, message in ipairs(redis.call('RPOP', KEYS[index], wanted - #messages) or {}) do
      messages[#messages + 1] = message
    end
  end
end
if #messages == 0 then
  return {}
end
-- A server that lost its data would count anew, while the owner works on leases of those numbers.
local number = math.max(redis.call('GET', KEYS[4]) or 0, ARGV[4])
redis.call('SET', KEYS[4], number + #messages)
local taken = {}
for index, message in ipairs(messages) do
  local id = string.format('%d@%s', number + index, ARGV[3])
  redis.call('HSET', KEYS[5], id, message)
  redis.call('ZADD', KEYS[6], now + ARGV[2], id)
  taken[#taken + 1] = id
  taken[#taken + 1] = message
end
return taken
