-- Take back what a dead worker held, and count it as delivered where a task may have run.
-- KEYS: queue, leased, leases, deliveries, watch (a hash: when somebody last looked, until when to take
--       nothing), workers (a hash: what owners note of themselves)
-- ARGV: "expired" for the leases that ran out, "owner" for those of one owner, or "ids"; deliveries that
--       make a message poison; how many tasks a worker runs at once; lease in seconds; seconds without a
--       look after which owners need time; then the owner, or the ids
-- Returns seconds until another look makes sense (as text, or '' where nothing is known), how many went
-- back, whether there is more ('1' or ''), and of each that is poison: id, deliveries, message. Those stay
-- leased for as long as any lease, so that no other worker counts them too.

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[3], '')

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local most, at_once, lease, gap = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local function parts(id)
  local number, owner = string.match(id, '^(%d+)@(.*)$')
  return tonumber(number or 0), owner or ''
end

-- 1. Whose?
local ids
if ARGV[1] == 'expired' then
  local looked = tonumber(redis.call('HGET', KEYS[5], 'looked') or 0)
  redis.call('HSET', KEYS[5], 'looked', string.format('%.6f', now))
  if now - looked > gap then
    -- Nobody has looked for long: the broker was away, or every worker was. Owners that live need time to
    -- renew what ran out meanwhile.
    redis.call('HSET', KEYS[5], 'grace', string.format('%.6f', now + math.min(lease, 5)))
  end
  local grace = tonumber(redis.call('HGET', KEYS[5], 'grace') or 0)
  if now < grace then
    return {string.format('%.6f', grace - now), 0, ''}
  end
  ids = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)
elseif ARGV[1] == 'owner' then
  ids = {}
  for _, id in ipairs(redis.call('HKEYS', KEYS[2])) do
    local _, owner = parts(id)
    if owner == ARGV[6] then
      ids[#ids + 1] = id
    end
  end
else
  ids = {}
  for index = 6, #ARGV do
    ids[#ids + 1] = ARGV[index]
  end
end

-- 2. In the order of the fetches. Tasks start in it, too, so the oldest of each owner are those that ran.
--    The others only waited beside one that may have killed the worker.
local found, seen = {}, {}
for _, id in ipairs(ids) do
  local number, owner = parts(id)
  found[#found + 1] = {number, id, owner}
end
table.sort(found, function(a, b) return a[1] < b[1] end)
for _, each in ipairs(found) do
  local owner = each[3]
  if not seen[owner] then
    -- One that was told to stop, and noted it, was ended by others, whatever it ran.
    local noted = ARGV[1] ~= 'ids' and redis.call('HGET', KEYS[6], owner) or ''
    seen[owner] = string.find(noted, '"stopping": true', 1, true) and at_once or 0
  end
  seen[owner] = seen[owner] + 1
  each[4] = seen[owner] <= at_once
end

-- 3. Back to the front of the queue, newest first, so that the oldest is next. The same holds of steps: what
--    the next one finds is older, and has the same place among its owner's.
local batch = ARGV[1] == 'expired' and 1000 or #found  -- in one step, while Redis serves nobody else
local reply = {'', 0, #found > batch and '1' or ''}
for index = #found, math.max(1, #found - batch + 1), -1 do
  local id, ran = found[index][2], found[index][4]
  local message = redis.call('HGET', KEYS[2], id)
  if message then
    local deliveries = ran and redis.call('HINCRBY', KEYS[4], redis.sha1hex(message), 1) or 0
    if ran and deliveries >= most then
      redis.call('ZADD', KEYS[3], now + lease, id)
      reply[#reply + 1] = id
      reply[#reply + 1] = deliveries
      reply[#reply + 1] = message
    else
      redis.call('HDEL', KEYS[2], id)
      redis.call('ZREM', KEYS[3], id)
      redis.call('RPUSH', KEYS[1], message)
      reply[2] = reply[2] + 1
    end
  else
    redis.call('ZREM', KEYS[3], id)
  end
end
return reply
