-- Delete some of the messages that wait, or are delayed, with their counts of deliveries.
-- KEYS: deliveries, then the queue's lists for lower priorities, then those of parts/lane.lua
-- ARGV: "waiting" for what may be fetched, in the queue or due; or "delayed" for what is not due; most to
--       delete; a key, for its messages alone, or ''; how far earlier steps have got, or ''; the limits
-- Returns how many went, and how far it got, or '' when that was all: "keys" and a cursor in the hash of them, or
-- "due" and how many of the delayed ones with a key were looked at.
redis.call('ZREM', delayed, '')

local most, only = tonumber(ARGV[2]), ARGV[3]
local phase, at = string.match(ARGV[4], '^(%a+) (%d+)$')
if not phase then
  phase, at = ARGV[1] == 'waiting' and 'keys' or 'due', '0'
end
local now = string.format('%.6f', time())
local from, to = '(' .. now, '+inf'
if ARGV[1] == 'waiting' then
  from, to = '-inf', now
end

local gone = 0
local counted = redis.call('EXISTS', KEYS[1]) == 1
local function forget(message)
  gone = gone + 1
  count_locked(message, -1)
  ended(header(message, 'lane_once'), 'purged')
  if counted then
    local digest = redis.sha1hex(message)
    redis.call('HDEL', KEYS[1], digest, 'unknown:' .. digest)
  end
end

local function forget_key(key)
  while gone < most do
    local message = leave(key)
    if not message then
      break
    end
    forget(message)
  end
  settle(key)
end

local function forget_list(list, is_among_tokens)
  while gone < most do
    local message = redis.call('RPOP', list)
    if not message then
      break
    end
    if is_among_tokens then
      owed = owed - 1
    end
    if message == TOKEN then
      redis.call('HINCRBY', state, 'removed', 1)
    else
      forget(message)
    end
  end
end

local function forget_due(set)
  for _, message in ipairs(redis.call('ZRANGEBYSCORE', set, from, to, 'LIMIT', 0, most - gone)) do
    redis.call('ZREM', set, message)
    forget(message)
  end
end

local function so_far(...)
  finish()
  return {gone, string.format(...)}
end

-- 1. What waits and has a key; when there is no more of it, the queue has no tokens.
if phase == 'keys' and only ~= '' then
  forget_key(only)
elseif phase == 'keys' then
  local found = redis.call('HSCAN', keys, at)
  for index = 1, #found[2], 2 do
    forget_key(found[2][index])
  end
  if gone >= most or found[1] ~= '0' then
    return so_far('keys %s', gone >= most and at or found[1])
  end
  finish()
end
if gone >= most then
  return so_far('keys 0')
end

-- 2. What is due, or delayed, of one key: among that of the others, a thousand at a time.
if only ~= '' then
  local looked, stay = phase == 'due' and tonumber(at) or 0, 0
  local found = redis.call('ZRANGEBYSCORE', keyed_delayed, from, to, 'LIMIT', looked, 1000)
  for index = 1, #found do
    if gone >= most then
      break
    end
    if key_of(found[index]) == only then
      redis.call('ZREM', keyed_delayed, found[index])
      forget(found[index])
    else
      stay = stay + 1
    end
  end
  if gone >= most or #found == 1000 then
    return so_far('due %d', looked + stay)
  end
  return so_far('')
end

-- 3. All else.
if ARGV[1] == 'waiting' then
  -- Its tokens go with it, and what stood before them in the queue takes its place.
  while gone < most and redis.call('EXISTS', plain) == 1 do
    forget_list(plain, true)
    finish()
  end
  forget_list(queue)
  for index = 2, #KEYS do
    forget_list(KEYS[index])
  end
end
if gone < most then
  forget_due(delayed)
end
if gone < most then
  forget_due(keyed_delayed)
end
return so_far(gone >= most and (ARGV[1] == 'waiting' and 'keys 0' or 'due 0') or '')
