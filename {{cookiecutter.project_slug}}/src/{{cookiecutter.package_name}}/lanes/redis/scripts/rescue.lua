-- Take back messages that somebody held, and count those as delivered whose task may have run.
-- KEYS: leased, leases, deliveries, watch (a hash: when somebody last looked, until when to take nothing),
--       workers (a hash: what owners note of themselves), then those of parts/lane.lua
-- ARGV: "expired" for leases that ran out, of which those that were renewed since are left alone, "owner" for
--       those of a worker that is dead, or "ids"; deliveries that make a message poison; lease in seconds;
--       seconds without a look after which owners need time; then an id and '1' where a task may have run,
--       else '', and so on, oldest first: as many as Redis may serve nobody else for; then the limits
-- Returns the server's time, seconds until another look makes sense (both as text; '' where there is nothing
-- to wait for), and of each that is poison: id, deliveries, message. Those stay leased for as long as any
-- lease, so that no other worker counts them too.

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[2], '')

local now = time()
local how, most, lease, gap = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local reply = {string.format('%.6f', now), ''}

-- 1. May we?
if how == 'expired' then
  local looked = tonumber(redis.call('HGET', KEYS[4], 'looked') or 0)
  redis.call('HSET', KEYS[4], 'looked', reply[1])
  if now - looked > gap then
    -- Nobody has looked for long: the broker was away, or every worker was. Owners that live need time to
    -- renew what ran out meanwhile.
    redis.call('HSET', KEYS[4], 'grace', string.format('%.6f', now + math.min(lease, 5)))
  end
  local grace = tonumber(redis.call('HGET', KEYS[4], 'grace') or 0)
  if now < grace then
    reply[2] = string.format('%.6f', grace - now)
    return reply
  end
end

-- 2. Back to the front of the queue, newest first, so that the oldest is next. The same holds of steps.
for index = #ARGV - 1, 5, -2 do
  local id, ran = ARGV[index], ARGV[index + 1] == '1'
  local ends = tonumber(redis.call('ZSCORE', KEYS[2], id) or 0)
  local message = (how ~= 'expired' or ends <= now) and redis.call('HGET', KEYS[1], id)
  if message then
    if ran and how ~= 'ids' then
      -- A worker that was told to stop, and noted it, was ended by others, whatever it ran.
      local noted = redis.call('HGET', KEYS[5], string.match(id, '@(.*)$') or '') or ''
      ran = not string.find(noted, '"stopping": true', 1, true)
    end
    -- What does not count is noted all the same: its next delivery is a redelivery.
    local deliveries = redis.call('HINCRBY', KEYS[3], redis.sha1hex(message), ran and 1 or 0)
    if ran and deliveries >= most then
      redis.call('ZADD', KEYS[2], now + lease, id)
      reply[#reply + 1] = id
      reply[#reply + 1] = deliveries
      reply[#reply + 1] = message
    else
      redis.call('HDEL', KEYS[1], id)
      redis.call('ZREM', KEYS[2], id)
      unmark(id)
      hold_again(message)
      to_front(message)
    end
  elseif ends <= now then
    redis.call('ZREM', KEYS[2], id)
  end
end
finish()
return reply
