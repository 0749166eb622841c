-- Acknowledge what is done, and take as many messages as there are free slots for.
-- KEYS: queue, delayed, paused, sequence, leased, leases, deliveries, revocations, then the queue's
--       lists for lower priorities, then those of parts/lane.lua
-- ARGV: how many to take, lease in seconds, owner, the last lease's number that it knows, then ids of
--       messages that are done with, each with "-" in front when its task was revoked; then the limits
-- Returns the server's time, the number of the last revocation, seconds until a key's rate lets another task
-- start or '', and "paused", or of each new lease: id, message, and '1' when somebody else may have had it
-- before, or ''.
local wanted = tonumber(ARGV[1])
local now = time()
local reply = {string.format('%.6f', now), redis.call('GET', KEYS[8]) or '', ''}

-- 0. A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[6], '')

-- 1. Done: the message, its lease, and what is known of it if it ever came back.
local counted = redis.call('EXISTS', KEYS[7]) == 1
if #ARGV > 4 then
  local marked = redis.call('EXISTS', marks) == 1
  for index = 5, #ARGV do
    local undone, id = string.match(ARGV[index], '^(%-?)(.*)$')
    local message = counted and redis.call('HGET', KEYS[5], id)
    if message then
      local digest = redis.sha1hex(message)
      redis.call('HDEL', KEYS[7], digest, 'unknown:' .. digest)
    end
    redis.call('HDEL', KEYS[5], id)
    redis.call('ZREM', KEYS[6], id)
    if marked then
      ended(unmark(id), undone == '' and 'done' or 'undone')
    end
  end
end
if wanted == 0 then
  return reply
end

-- 2. A paused lane keeps what it has.
if redis.call('EXISTS', KEYS[3]) == 1 then
  reply[4] = 'paused'
  return reply
end

-- 3. How to lease a message; false when it is not to be run now after all.
-- A server that lost its data would count anew, while the owner works on leases of those numbers.
local number = math.max(redis.call('GET', KEYS[4]) or 0, ARGV[4])
local leased = 0
local function lease(message, key)
  local once = header(message, 'lane_once')
  local lock = lock_of(once)
  if lock and is_until_start(lock) then
    local latest_message, due = replacement(lock.id)
    if latest_message then
      if counted then
        redis.call('HDEL', KEYS[7], redis.sha1hex(message))
      end
      if due > now then
        until_due(latest_message, due)
        return false
      end
      message = latest_message
      once = header(message, 'lane_once')
      lock = lock_of(once)
    end
    unlock(lock)
  end
  number = number + 1
  leased = leased + 1
  local id = string.format('%.0f@%s', number, ARGV[3])
  redis.call('HSET', KEYS[5], id, message)
  redis.call('ZADD', KEYS[6], now + ARGV[2], id)
  if key or once then
    mark(id, key, once)
  end
  reply[#reply + 1] = id
  reply[#reply + 1] = message
  local again = counted and redis.call('HEXISTS', KEYS[7], redis.sha1hex(message)) == 1
  reply[#reply + 1] = again and '1' or ''
  return true
end

-- A message that stood in the queue: a token is none, and one with a key waits for its turn.
local function is_plain(message)
  if message == TOKEN then
    return false
  end
  local key = key_of(message)
  if key then
    enter(key, message)
  end
  return not key
end

-- 4. Without keys: half from what is due, first due first, and half from the queue; where one has fewer, more
--    of the other. With an odd number they take turns, by the number of the lease, so that neither starves.
local function take_without_keys()
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, wanted)
  local share = math.min(#due, math.floor((wanted + number % 2) / 2))
  local found = {}
  for index = 1, #KEYS do
    if (index == 1 or index > 8) and #found < wanted - share then
      for _, message in ipairs(redis.call('RPOP', KEYS[index], wanted - share - #found) or {}) do
        if is_plain(message) then
          found[#found + 1] = message
        end
      end
    end
  end
  share = math.min(#due, wanted - #found)
  if share > 0 then
    redis.call('ZREMRANGEBYRANK', KEYS[2], 0, share - 1)
  end
  if share + #found > 0 then
    redis.call('SET', KEYS[4], string.format('%.0f', number + share + #found))
  end
  -- Lease them in the same step, those that were due before the others.
  for index = 1, share do
    lease(due[index])
  end
  for _, message in ipairs(found) do
    lease(message)
  end
end

-- 5. With keys: each takes one when its turn comes, and messages without a key are one more.
local function due_plain()
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)[1]
  if due then
    redis.call('ZREM', KEYS[2], due)
  end
  return due
end

-- The first without a key that stands behind tokens takes the place of one in their list, and those near it.
local function look_behind_tokens()
  local seen = in_state('seen')
  local found = redis.call('LRANGE', queue, -seen - 1000, -seen - 1)
  local moved, with_key, place = 0, 0, #found
  while place > 0 and moved < 100 do
    if found[place] ~= TOKEN then
      redis.call('LSET', queue, place - #found - seen - 1, TOKEN)
      if is_plain(found[place]) then
        redis.call('LPUSH', plain, found[place])
      else
        with_key = with_key + 1
      end
      moved = moved + 1
    end
    place = place - 1
  end
  -- Where there was nothing, somebody else has taken from the queue: look at all of it again the next time.
  redis.call('HSET', state, 'seen', #found == 0 and 0 or seen + #found - place)
  remove_tokens(with_key)
end

local function queued_plain()
  if redis.call('EXISTS', plain) == 0 then
    local first = plain_in_queue() > 0 and redis.call('LINDEX', queue, -1)
    if first and first ~= TOKEN then
      redis.call('RPOP', queue)
      if is_plain(first) then
        return first
      end
      return nil
    end
    if first then
      look_behind_tokens()
    end
  end
  local message = redis.call('RPOP', plain)
  if message then
    remove_tokens(1)
  end
  return message
end

local function low_priority()
  for index = 9, #KEYS do
    local message = redis.call('RPOP', KEYS[index])
    if message and is_plain(message) then
      return message
    end
  end
end

local function is_any_plain()
  if redis.call('EXISTS', plain, unpack(KEYS, 9)) > 0 or plain_in_queue() > 0 then
    return true
  end
  return #redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1) > 0
end

local function turn_of_plain()
  local message
  if number % 2 == 0 then
    message = due_plain() or queued_plain()
  else
    message = queued_plain() or due_plain()
  end
  message = message or low_priority()
  if message then
    lease(message)
    if is_any_plain() then
      join('')
    end
  end
end

local function turn_of(key)
  local is_free = at_once == 0 or free_places(key) > 0
  if is_free and (interval == 0 or not redis.call('ZSCORE', rates, key)) then
    local message = leave(key)
    if message and lease(message, key) and interval > 0 then
      redis.call('ZADD', rates, string.format('%.6f', now + interval), key)
    end
  end
  settle(key)
end

local function take_in_turns()
  redis.call('SET', KEYS[4], string.format('%.0f', number + wanted))
  sort_due(now)
  revive(now)
  if is_any_plain() then
    join('')
  end
  while leased < wanted do
    local key = redis.call('ZPOPMIN', turns)[1]
    if not key then
      break
    end
    if key == '' then
      turn_of_plain()
    else
      turn_of(key)
    end
  end
  if leased < wanted and redis.call('LLEN', queue) > 0 and not is_any_plain() then
    -- Tokens of nothing: somebody else has changed these keys. They would wake us for ever.
    redis.call('DEL', tokens)
    redis.call('HSET', state, 'tokens', 0)
    remove_tokens(math.min(1000, redis.call('LLEN', queue)))
    for _, key in ipairs(redis.call('ZRANGE', waiting, 0, 999)) do
      settle(key)
    end
  end
  local first = redis.call('ZRANGE', rates, 0, 0, 'WITHSCORES')[2]
  if first then
    reply[3] = string.format('%.6f', math.max(0, first - now))
  end
end

if redis.call('EXISTS', turns, plain, keyed_delayed, rates) == 0 then
  take_without_keys()
else
  take_in_turns()
end
return reply
