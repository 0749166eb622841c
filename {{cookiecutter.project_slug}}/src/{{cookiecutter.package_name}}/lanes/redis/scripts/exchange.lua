-- Acknowledge what is done, and take as many messages as there are free slots for.
-- KEYS: queue, delayed, paused, sequence, leased, leases, deliveries, revocations, then the queue's
--       lists for lower priorities, then those of parts/lane.lua
-- ARGV: how many to take, lease in seconds, owner, the last lease's number that it knows, then ids of
--       messages that are done with, each with "-" in front when its task was revoked; then the limits
-- Returns the server's time, the number of the last revocation, seconds until a key's rate lets another task
-- start or '', and "paused", or of each new lease: id, message, and '1' when somebody else may have had it
-- before, or ''.
--
-- Here is what it does where no message has a key or a lock; parts/lane.lua and parts/turns.lua, which follow,
-- are for the others.
local wanted = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local reply = {string.format('%.6f', now), redis.call('GET', KEYS[8]) or '', ''}
local is_keyed = redis.call('EXISTS', KEYS[#KEYS] .. 'keyed:state') == 1
local done = {}  -- of what had a key or a lock: lease id to "done" or "undone"

-- 0. A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[6], '')

-- 1. Done: the message, its lease, and what is known of it if it ever came back.
local counted = redis.call('EXISTS', KEYS[7]) == 1
for index = 5, #ARGV - 1 do
  local id, how = ARGV[index], 'done'
  if string.byte(id) == 45 then
    id, how = string.sub(id, 2), 'undone'
  end
  local message = counted and redis.call('HGET', KEYS[5], id)
  if message then
    local digest = redis.sha1hex(message)
    redis.call('HDEL', KEYS[7], digest, 'unknown:' .. digest)
  end
  redis.call('HDEL', KEYS[5], id)
  redis.call('ZREM', KEYS[6], id)
  done[id] = is_keyed and how or nil
end

-- 2. A paused lane keeps what it has.
if wanted > 0 and redis.call('EXISTS', KEYS[3]) == 1 then
  reply[4] = 'paused'
  wanted = 0
end
if wanted == 0 and not is_keyed then
  return reply
end

-- 3. How to lease a message.
-- A server that lost its data would count anew, while the owner works on leases of those numbers.
local number = math.max(redis.call('GET', KEYS[4]) or 0, ARGV[4])
local leased = 0
local function lease(message)
  number = number + 1
  leased = leased + 1
  local id = string.format('%.0f@%s', number, ARGV[3])
  redis.call('HSET', KEYS[5], id, message)
  redis.call('ZADD', KEYS[6], now + ARGV[2], id)
  reply[#reply + 1] = id
  reply[#reply + 1] = message
  local again = counted and redis.call('HEXISTS', KEYS[7], redis.sha1hex(message)) == 1
  reply[#reply + 1] = again and '1' or ''
  return id
end

-- 4. Half from what is due, first due first, and half from the queue; where one has fewer, more of the other.
--    With an odd number they take turns, by the number of the lease, so that neither starves.
if not is_keyed then
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, wanted)
  local share = math.min(#due, math.floor((wanted + number % 2) / 2))
  local messages = {}
  for index = 1, #KEYS - 2 do
    if (index == 1 or index > 8) and #messages < wanted - share then
      for _, message in ipairs(redis.call('RPOP', KEYS[index], wanted - share - #messages) or {}) do
        if message ~= '"keyed"' then  -- one of lane.lua's tokens that stands for nothing
          messages[#messages + 1] = message
        end
      end
    end
  end
  share = math.min(#due, wanted - #messages)
  if share > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, share - 1)
  end
  if share + #messages > 0 then
    redis.call('SET', KEYS[4], string.format('%.0f', number + share + #messages))
  end
  -- Lease them in the same step, those that were due before the others.
  for index = 1, share do
    lease(due[index])
  end
  for _, message in ipairs(messages) do
    lease(message)
  end
  return reply
end
