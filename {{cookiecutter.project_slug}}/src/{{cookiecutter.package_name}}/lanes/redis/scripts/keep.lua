-- Say that a worker keeps a schedule; of several schedules, the one that appeared last is kept.
-- KEYS: keepers (a hash: when a worker was last there, and its schedule, by owner), schedules (a hash: when
--       one appeared and when a worker last had it; and `kept`, of which the entries are), entries (a hash:
--       what an entry says, and its last instant, by name)
-- ARGV: owner, schedule, seconds without a word after which a worker is gone, seconds that a schedule is
--       remembered which no worker has, how many entries ours has, then '1' where their names follow and what
--       each says, as a digest, else ''
-- Returns the server's time, and "kept", "tell" when it is to be asked again with the names, or "other".

-- A server without memory refuses a script whose first write may need some; HDEL needs none.
redis.call('HDEL', KEYS[1], '')

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1e6
local at = string.format('%.6f', now)
local ours = ARGV[2]

-- 1. Who has which schedule?
redis.call('HSET', KEYS[1], ARGV[1], at .. ' ' .. ours)
local had = {}
local keepers = redis.call('HGETALL', KEYS[1])
for index = 1, #keepers, 2 do
  local seen, schedule = string.match(keepers[index + 1], '^(%S+) (%S+)$')
  if now - tonumber(seen) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], keepers[index])
  else
    had[schedule] = true
  end
end

-- 2. Which of these appeared last? A worker that comes back with an old one does not make it new.
local appeared = {}
local kept = redis.call('HGET', KEYS[2], 'kept')
local schedules = redis.call('HGETALL', KEYS[2])
for index = 1, #schedules, 2 do
  local schedule = schedules[index]
  if schedule ~= 'kept' then
    local first, last = string.match(schedules[index + 1], '^(%S+) (%S+)$')
    if had[schedule] then
      redis.call('HSET', KEYS[2], schedule, first .. ' ' .. at)
      appeared[schedule] = tonumber(first)
    elseif now - tonumber(last) > tonumber(ARGV[4]) then
      redis.call('HDEL', KEYS[2], schedule)
    end
  end
end
if not appeared[ours] then
  redis.call('HSET', KEYS[2], ours, at .. ' ' .. at)
  appeared[ours] = tonumber(at)
end
for schedule, first in pairs(appeared) do
  if first > appeared[ours] or (first == appeared[ours] and schedule > ours) then
    return {at, 'other'}
  end
end
if kept == ours and redis.call('HLEN', KEYS[3]) == tonumber(ARGV[5]) then
  return {at, 'kept'}
end
if ARGV[6] == '' then
  return {at, 'tell'}
end

-- 3. A new entry, or one that says something else, takes up from now; one that is gone is forgotten.
local named = {}
for index = 7, #ARGV, 2 do
  local name, says = ARGV[index], ARGV[index + 1]
  named[name] = true
  local known = redis.call('HGET', KEYS[3], name) or ''
  if string.match(known, '^(%S+) ') ~= says then
    redis.call('HSET', KEYS[3], name, says .. ' ' .. string.format('%.3f', now))
  end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
  if not named[name] then
    redis.call('HDEL', KEYS[3], name)
  end
end
redis.call('HSET', KEYS[2], 'kept', ours)
return {at, 'kept'}
