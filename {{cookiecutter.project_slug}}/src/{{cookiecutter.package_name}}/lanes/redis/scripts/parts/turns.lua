-- How messages are taken where some have a key or a lock. It stands behind exchange.lua, of which it has `now`,
-- `wanted`, `counted`, `done`, `reply`, `number`, `leased` and `lease`, and behind lane.lua.
-- Each key takes one when its turn comes, and messages without a key are one more.
for id, how in pairs(done) do
  ended(unmark(id), how)
end

-- Lease a message; false when it is not to be run now after all.
local function lease_with_lock(message, key)
  local once = header(message, 'lane_once')
  count_locked(message, -1)
  local lock = lock_of(once)
  if lock and is_until_start(lock) then
    local newer, due = replacement(lock.id)
    if newer then
      if counted then
        redis.call('HDEL', KEYS[7], redis.sha1hex(message))
      end
      message, once = newer, header(newer, 'lane_once')
      if due > now then
        hold(lock_of(once))
        until_due(message, due)
        return false
      end
    end
    unlock(lock)
  end
  local id = lease(message)
  if key or once then
    mark(id, key, once)
  end
  served = key or ''
  return true
end

-- A message that stood in the queue: one with a key, which somebody else put there, waits for its turn.
local function is_plain(message)
  local key = key_of(message)
  if key then
    enter(key, message)
  end
  return not key
end

local function due_plain()
  local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)[1]
  if due then
    redis.call('ZREM', KEYS[2], due)
  end
  return due
end

-- Messages without a key that stand behind tokens: those next to each other move to the list of such messages,
-- and leave a token. Returns how many elements of the queue it has looked at, and how many of them moved.
local function look_behind_tokens()
  local removed = in_state('removed')
  local seen = math.max(0, in_state('seen') - removed)
  local found = redis.call('LRANGE', queue, -seen - 1000, -seen - 1)
  local moved, place = 0, #found
  while place > 0 and moved < 100 do
    if found[place] ~= TOKEN then
      redis.call('LSET', queue, place - #found - seen - 1, TOKEN)
      moved = moved + 1
      if is_plain(found[place]) then
        redis.call('LPUSH', plain, found[place])
      else
        owed = owed - 1  -- it has a token already: that of its place
      end
    end
    place = place - 1
  end
  -- Where there was nothing, somebody else has taken from the queue: look at all of it again the next time.
  redis.call('HSET', state, 'seen', #found == 0 and 0 or removed + seen + #found - place)
  redis.call('HINCRBY', state, 'added', moved)
  return #found, moved
end

local function queued_plain()
  if redis.call('EXISTS', plain) == 0 then
    finish()
    local first = plain_in_queue() > 0 and redis.call('LINDEX', queue, -1)
    if first and first ~= TOKEN then
      redis.call('RPOP', queue)
      if is_plain(first) then
        return first
      end
      return nil
    end
    local looks, found, moved = 0, 1000, 0
    while first and looks < 20 and found == 1000 and moved == 0 do
      looks, found, moved = looks + 1, look_behind_tokens()
    end
  end
  local message = redis.call('RPOP', plain)
  if message then
    owed = owed - 1
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

local function join_plain(had_turn)
  if is_any_plain() and redis.call('HSETNX', state, 'plain_in_turns', 1) == 1 then
    join('', had_turn)
  end
end

local function turn_of_plain()
  redis.call('HDEL', state, 'plain_in_turns')
  local message
  if redis.call('HINCRBY', state, 'plain_turns', 1) % 2 == 0 then
    message = due_plain() or queued_plain()
  else
    message = queued_plain() or due_plain()
  end
  message = message or low_priority()
  if message then
    lease_with_lock(message)
    join_plain(true)
  end
end

local function turn_of(key)
  local is_free = at_once == 0 or free_places(key) > 0
  if is_free and (interval == 0 or not redis.call('ZSCORE', rates, key)) then
    local message = leave(key)
    if message and lease_with_lock(message, key) and interval > 0 then
      redis.call('ZADD', rates, string.format('%.6f', now + interval), key)
    end
  end
  settle(key, true)
end

if wanted > 0 then
  redis.call('SET', KEYS[4], string.format('%.0f', number + wanted))
  sort_due(now)
  revive(now)
  if plain_in_queue() < 0 then
    -- Somebody else has taken tokens, or deleted the queue: there are to be as many as are noted.
    local noted = in_state('added') - in_state('removed')
    redis.call('LREM', queue, 0, TOKEN)
    redis.call('HINCRBY', state, 'removed', noted)
    add_tokens(noted)
  end
  join_plain()
  local had_turn = 0  -- of keys that have no messages any more, there may be very many
  while leased < wanted and had_turn < wanted + 1000 do
    local key = redis.call('RPOP', turns)
    had_turn = had_turn + 1
    if not key then
      break
    end
    if key == '' then
      turn_of_plain()
    else
      turn_of(key)
    end
  end
  local first = redis.call('ZRANGE', rates, 0, 0, 'WITHSCORES')[2]
  if first and redis.call('EXISTS', keys) == 1 then
    reply[3] = string.format('%.6f', math.max(0, first - now))
  end
end
finish()

if redis.call('EXISTS', turns) == 0 then
  local others = redis.call('EXISTS', keys, plain, rates, keyed_delayed, marks, latest)
  if others == 0 and in_state('locked') <= 0 then
    -- No key and no lock is in use any more. Tokens that are left stand for nothing.
    local left = in_state('added') - in_state('removed')
    if left > 0 then
      redis.call('LREM', queue, left, TOKEN)
    end
    redis.call('DEL', state, running)
  elseif leased < wanted and redis.call('LLEN', queue) > 0 and not is_any_plain() then
    -- Likewise; somebody else has changed these keys. They would wake us for ever.
    redis.call('LREM', queue, 0, TOKEN)
    redis.call('HSET', state, 'added', 0, 'removed', 0, 'seen', 0, 'free', 0)
    for _, key in ipairs(redis.call('HKEYS', keys)) do
      redis.call('HSET', keys, key, 0)
      settle(key)
    end
    finish()
  end
end
return reply
