-- What scripts share that take messages, put them back, or end them; it is put in front of them.
-- KEYS ends with the queue and what the names of the lane's other keys begin with; ARGV ends with the limits
-- of each key: tasks at once, and seconds between two starts; 0 is no limit.
--
-- A message with a key waits in a list of its key's, and keys take turns. Those whose turn may come are in
-- `turns`, by number; '' is among them for all messages without a key. For each message that may start the
-- queue has a token, so that it wakes who waits for the queue, and counts in its length.
--
--   keyed:messages:<key>  list: messages of a key; with '', those without one that stood among tokens
--   keyed:turns           list of keys by whose turn is next, the next on the right
--   keyed:keys            hash of key to twice its tokens in the queue, and 1 more when it is in `turns`
--   keyed:running         hash of key to how many of its messages are leased
--   keyed:rates           sorted set of keys by when the next may start
--   keyed:delayed         as `delayed`, of messages with a key
--   keyed:leased          hash of lease id to key and lock, of messages that have either
--   keyed:state           hash, there while any other of these is, or a message with a lock:
--                           waiting         messages with a key, in all
--                           locked          messages with a lock and no key, in all
--                           free            keys that may start, in all
--                           added, removed  tokens, ever; the queue has as many as lie between
--                           seen            the `seen - removed` elements at its right end are known to be tokens
--                           served          the key that had the last turn
--                           plain_in_turns  there when '' is in `turns`
--                           plain_turns     turns of '', ever
--                           swept           how far `keyed:leased` was looked through, a cursor
--   once:<name>           number of retries and id of the task that holds the lock
--   latest                hash of task id to when it is due and the message that takes its place
local lane, queue = table.remove(KEYS), table.remove(KEYS)
local at_once, interval = string.match(table.remove(ARGV), '(%S+) (%S+)')
at_once, interval = tonumber(at_once), tonumber(interval)
local TOKEN = '"keyed"'
local messages, turns, keys = lane .. 'keyed:messages:', lane .. 'keyed:turns', lane .. 'keyed:keys'
local running, rates, marks = lane .. 'keyed:running', lane .. 'keyed:rates', lane .. 'keyed:leased'
local state, latest = lane .. 'keyed:state', lane .. 'latest'
local delayed, keyed_delayed = lane .. 'delayed', lane .. 'keyed:delayed'
local plain = messages  -- of the key ''
-- What has changed, and is written by `finish`: most of it cancels out.
local owed, more_waiting, more_free, more_locked = 0, 0, 0, 0
local served  -- a key of which this script has leased a message, the last

local function time()
  local clock = redis.call('TIME')
  return clock[1] + clock[2] / 1e6
end

-- A header that is a text without quotes; texts in a message are quoted, so that none looks like this.
local function header(message, name)
  local from = string.find(message, '"' .. name .. '":', 1, true)
  return from and string.match(message, '^%s*"([^"]*)"', from + #name + 3)
end

local function key_of(message)
  local key = header(message, 'lane_key')
  return key ~= '' and key or nil
end

-- Tokens ------------------------------------------------------------------------------------------

local function in_state(field)
  return tonumber(redis.call('HGET', state, field) or 0)
end

-- How many messages without a key stand in the queue itself.
local function plain_in_queue()
  return redis.call('LLEN', queue) - in_state('added') + in_state('removed')
end

local function add_tokens(count)
  local all_tokens = plain_in_queue() <= 0
  for from = 1, count, 1000 do
    local some = {}
    for index = 1, math.min(1000, count - from + 1) do
      some[index] = TOKEN
    end
    redis.call('LPUSH', queue, unpack(some))
  end
  redis.call('HINCRBY', state, 'added', count)
  if all_tokens then
    redis.call('HSET', state, 'seen', in_state('removed') + redis.call('LLEN', queue))
  end
end

-- Whichever tokens they are; a message that stands before them keeps its place among those without a key, and
-- the token that was to go is its own.
local function remove_tokens(count)
  local removed = 0
  for _, first in ipairs(redis.call('RPOP', queue, count) or {}) do
    if first == TOKEN then
      removed = removed + 1
    else
      redis.call('LPUSH', plain, first)
    end
  end
  redis.call('HINCRBY', state, 'removed', removed)
end

-- Each script ends with this.
local function finish()
  if more_waiting ~= 0 then
    redis.call('HINCRBY', state, 'waiting', more_waiting)
  end
  if more_free ~= 0 then
    redis.call('HINCRBY', state, 'free', more_free)
  end
  if owed > 0 then
    add_tokens(owed)
  elseif owed < 0 then
    remove_tokens(-owed)
  end
  if more_locked ~= 0 then
    redis.call('HINCRBY', state, 'locked', more_locked)
  end
  if served then
    redis.call('HSET', state, 'served', served)
  end
  owed, more_waiting, more_free, more_locked = 0, 0, 0, 0
end

-- Turns -------------------------------------------------------------------------------------------

-- Its turn comes when all others have had theirs. One that is new has the turn before the key that was served
-- last, and so is the next where that one alone has a flood: fq_codel (RFC 8290) puts new flows first likewise.
-- None is passed for longer than until the next is served, for then that is the last.
local function join(key, had_turn)
  local last = not had_turn and redis.call('LINDEX', turns, 0)
  if last and last == (served or redis.call('HGET', state, 'served')) then
    redis.call('LINSERT', turns, 'AFTER', last, key)
  else
    redis.call('LPUSH', turns, key)
  end
end

local function free_places(key)
  return at_once - (redis.call('HGET', running, key) or 0)
end

-- Something has changed for a key: as many tokens as messages of it may start, and its turn comes if any may.
-- It `had_turn` when it was just taken from `turns`. One that may not start stays there until its turn comes, and
-- has none.
local function settle(key, had_turn)
  local said = tonumber(redis.call('HGET', keys, key) or 0)
  local have, in_turns = math.floor(said / 2), had_turn and 0 or said % 2
  local want = redis.call('LLEN', messages .. key)
  local is_waiting = want > 0
  if at_once > 0 and want > 0 then
    want = math.max(0, math.min(want, free_places(key)))
  end
  if interval > 0 and want > 0 then
    want = redis.call('ZSCORE', rates, key) and 0 or 1
  end
  owed = owed + want - have
  more_free = more_free + (want > 0 and 1 or 0) - (have > 0 and 1 or 0)
  if want > 0 and in_turns == 0 then
    join(key, had_turn)
    in_turns = 1
  end
  if is_waiting or in_turns == 1 then
    redis.call('HSET', keys, key, 2 * want + in_turns)
  else
    redis.call('HDEL', keys, key)
  end
end

-- Keys whose rate lets another start. None waits for longer than the interval, though a clock was set back.
local function revive(now)
  local due = redis.call('ZRANGEBYSCORE', rates, '-inf', interval > 0 and now or '+inf', 'LIMIT', 0, 1000)
  if interval > 0 then
    local beyond = string.format('(%.6f', now + interval)
    for _, key in ipairs(redis.call('ZRANGEBYSCORE', rates, beyond, '+inf', 'LIMIT', 0, 1000)) do
      due[#due + 1] = key
    end
  end
  for _, key in ipairs(due) do
    redis.call('ZREM', rates, key)
    settle(key)
  end
end

-- Messages with a key, at most 1,000, wait from here on, behind the others of their key.
local function enter(key, ...)
  redis.call('LPUSH', messages .. key, ...)
  more_waiting = more_waiting + select('#', ...)
  settle(key)
end

-- One waits in front of the others.
local function enter_in_front(key, message)
  redis.call('RPUSH', messages .. key, message)
  more_waiting = more_waiting + 1
  settle(key)
end

-- The first message of a key, if there is one; the caller settles the key when it is done.
local function leave(key)
  local message = redis.call('RPOP', messages .. key)
  if message then
    more_waiting = more_waiting - 1
  end
  return message
end

-- Where messages wait -----------------------------------------------------------------------------

-- A message with a lock alone waits from here on, or no more.
local function count_locked(message, change)
  if header(message, 'lane_once') and not key_of(message) then
    more_locked = more_locked + change
  end
end

local function to_queue(message)
  local key = key_of(message)
  count_locked(message, 1)
  if key then
    enter(key, message)
  else
    redis.call('LPUSH', queue, message)
  end
end

local function to_front(message)
  local key = key_of(message)
  count_locked(message, 1)
  if key then
    enter_in_front(key, message)
  elseif redis.call('EXISTS', turns, plain) > 0 then
    redis.call('RPUSH', plain, message)
    owed = owed + 1
  else
    redis.call('RPUSH', queue, message)
  end
end

-- Returns the message as it stands there: a set holds the same bytes once, and a space after it changes
-- nothing of what JSON says.
local function until_due(message, due)
  count_locked(message, 1)
  local set = key_of(message) and keyed_delayed or delayed
  while redis.call('ZSCORE', set, message) do
    message = message .. ' '
  end
  redis.call('ZADD', set, due, message)
  return message
end

-- Of messages with a key, those that are due wait with the others of their keys.
local function sort_due(now)
  local due = redis.call('ZRANGEBYSCORE', keyed_delayed, '-inf', now, 'LIMIT', 0, 1000)
  if #due > 0 then
    redis.call('ZREMRANGEBYRANK', keyed_delayed, 0, #due - 1)
  end
  for _, message in ipairs(due) do
    enter(key_of(message) or '?', message)
  end
  return #due
end

-- Locks -------------------------------------------------------------------------------------------
--
-- A lock is taken in the step that sends, and goes
--   start    when the task is leased; it is taken again, if it is free, when the message comes back
--   latest   likewise; and who sends meanwhile has its message take the place of the first
--   done     when the task has ended in any way
--   time     after its milliseconds, or when the task has ended in any way but well

-- What a message says of its lock: mode, milliseconds, number of retries, id, name of the lock; or nil.
local function lock_of(said)
  if said and said ~= '' then
    local mode, milliseconds, retries, id, name = string.match(said, '^(%a+) (%d+) (%d+) (%S+) (%S+)$')
    return mode and {
      mode = mode, milliseconds = tonumber(milliseconds), retries = tonumber(retries), id = id,
      key = lane .. 'once:' .. name,
    }
  end
end

-- Who holds a lock: number of retries, id; or nil.
local function holder(lock)
  local retries, id = string.match(redis.call('GET', lock.key) or '', '^(%d+) (%S+)$')
  return tonumber(retries), id
end

local function hold(lock)
  local value = string.format('%d %s', lock.retries, lock.id)
  if lock.mode == 'time' then
    redis.call('SET', lock.key, value, 'PX', lock.milliseconds)
  else
    redis.call('SET', lock.key, value)
  end
end

-- The lock goes, unless it is another's, or that of a later run of the same task.
local function unlock(lock)
  local retries, id = holder(lock)
  if id == lock.id and retries <= lock.retries then
    redis.call('DEL', lock.key)
  end
end

-- The message, and when it is due, that takes the place of a task's; or nil.
local function replacement(id)
  local said = redis.call('HGET', latest, id)
  if said then
    redis.call('HDEL', latest, id)
    local due, message = string.match(said, '^(%S+) (.*)$')
    return message, tonumber(due)
  end
end

-- Who may start as soon as it is leased holds the lock until then, and again when it comes back.
local function is_until_start(lock)
  return lock.mode == 'start' or lock.mode == 'latest'
end

-- Leases ------------------------------------------------------------------------------------------

-- Note what a message that is leased has: a place among its key's, and a lock.
local function mark(id, key, once)
  if key or once then
    redis.call('HSET', marks, id, (key or '') .. '\n' .. (once or ''))
  end
  if key then
    redis.call('HINCRBY', running, key, 1)
  end
end

-- A lease has ended; returns what its message says of its lock. A task that has `not_begun` is no start.
local function unmark(id, not_begun)
  local said = redis.call('HGET', marks, id)
  if not said then
    return nil
  end
  redis.call('HDEL', marks, id)
  local key, once = string.match(said, '^([^\n]*)\n(.*)$')
  if key ~= '' then
    if redis.call('HINCRBY', running, key, -1) <= 0 then
      redis.call('HDEL', running, key)
    end
    if not_begun then
      redis.call('ZREM', rates, key)
    end
    -- '0': it waits for a place, by this worker's limits or those of another release's.
    if at_once > 0 or not_begun or redis.call('HGET', keys, key) == '0' then
      settle(key)
    end
  end
  return once
end

-- A message has left for good: "done" when its task ended well, as far as anybody knows; "undone", and then
-- even a lock for a time goes; or "purged", with what was to take its place.
local function ended(once, how)
  local lock = lock_of(once)
  if not lock then
    return
  end
  if not (how == 'done' and lock.mode == 'time') then
    unlock(lock)
  end
  local retries, id = holder(lock)
  if id == lock.id and retries > lock.retries then
    return  -- a later run has it, and what is to take that one's place
  end
  local message, due = replacement(lock.id)
  if message and how ~= 'purged' then
    if not redis.call('GET', lock.key) then
      hold(lock_of(header(message, 'lane_once')))
    end
    if due > time() then
      until_due(message, due)
    else
      to_queue(message)
    end
  end
end

-- A message waits again: it holds its lock again, if that is free.
local function hold_if_free(message)
  local lock = lock_of(header(message, 'lane_once'))
  if lock and not redis.call('GET', lock.key) then
    hold(lock)
  end
end

-- The same, of one whose lease has ended: all but locks that went when it was leased are held still, or have
-- run out.
local function hold_again(message)
  local lock = lock_of(header(message, 'lane_once'))
  if lock and is_until_start(lock) then
    hold_if_free(message)
  end
end
