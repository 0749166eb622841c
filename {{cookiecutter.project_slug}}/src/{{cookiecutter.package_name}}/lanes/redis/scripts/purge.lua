-- Delete some of the messages that wait, or are delayed, with their counts of deliveries.
-- KEYS: deliveries, then the queue's lists for lower priorities, then those of parts/lane.lua
-- ARGV: "waiting" for what may be fetched, in the queue or due; or "delayed" for what is not due; most to
--       delete; a key, for its messages alone, or ''; how many of the delayed ones with a key were looked at
--       before; the limits
-- Returns how many went, and how many of the delayed ones were looked at, or -1 when that was all.
redis.call('ZREM', delayed, '')

local most, only, looked = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local now = string.format('%.6f', time())
local from, to = '(' .. now, '+inf'
if ARGV[1] == 'waiting' then
  from, to = '-inf', now
end

local gone = 0
local counted = redis.call('EXISTS', KEYS[1]) == 1
local function forget(message)
  gone = gone + 1
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
      remove_tokens(1)
    end
    if message ~= TOKEN then
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

if only ~= '' then
  if ARGV[1] == 'waiting' then
    forget_key(only)
  end
  local found = redis.call('ZRANGEBYSCORE', keyed_delayed, from, to, 'LIMIT', looked, 1000)
  local stay = 0
  for _, message in ipairs(found) do
    if key_of(message) == only and gone < most then
      redis.call('ZREM', keyed_delayed, message)
      forget(message)
    else
      stay = stay + 1
      if gone >= most then
        break
      end
    end
  end
  return {gone, (#found < 1000 and gone < most) and -1 or looked + stay}
end

if ARGV[1] == 'waiting' then
  -- Those with a key first: then the queue has no tokens.
  while gone < most do
    local key = redis.call('ZRANGE', waiting, 0, 0)[1]
    if not key then
      break
    end
    forget_key(key)
  end
  forget_list(plain, true)
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
return {gone, -1}
