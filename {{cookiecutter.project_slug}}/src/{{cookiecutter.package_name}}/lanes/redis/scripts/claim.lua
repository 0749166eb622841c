-- Send the message of one instant of an entry, unless somebody did, in the same step.
-- KEYS: entries (a hash: what an entry says, and its last instant, by name), paused (a set of names),
--       runs (a hash: the last run, by name), where the message goes, then those of parts/lane.lua
-- ARGV: name, what `entries` is known to say of it, the same with this instant, the instant, the id of its
--       task, how many instants before it were missed, seconds by which a run is late, then the command that
--       sends, and what follows its key; or "send", when it is due or '', and the message; then the limits
-- Returns "sent", "paused", "changed" when `entries` says something else by now, or "early".
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 'changed'
end
local late = time() - tonumber(ARGV[4])
if late < 0 then
  return 'early'
end
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  return 'paused'
end
-- First what a server without memory refuses: then nothing was done.
local id = ARGV[5]
if ARGV[8] == 'send' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  local holder_of_lock = send_once(ARGV[10], ARGV[9])
  id = holder_of_lock ~= '' and holder_of_lock or id
else
  redis.call(ARGV[8], KEYS[4], unpack(ARGV, 9))
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
local before = cjson.decode(redis.call('HGET', KEYS[3], ARGV[1]) or '{}')
redis.call('HSET', KEYS[3], ARGV[1], cjson.encode({
  id = id,
  due = tonumber(ARGV[4]),
  late_by = late,
  late = (before.late or 0) + (late > tonumber(ARGV[7]) and 1 or 0),
  missed = (before.missed or 0) + tonumber(ARGV[6]),
}))
finish()
return 'sent'
