-- Delete dead letters; with their messages given, put those back in their queue, behind what waits there.
-- KEYS: those of parts/letters.lua, then those of parts/lane.lua
-- ARGV: "retry", then number, message, number, message, ...; or "purge", then numbers; then the limits
-- Returns how many there were; the others were gone already.

-- A server without memory refuses a script whose first write may need some; ZREM needs none.
redis.call('ZREM', KEYS[1], '')
count_anew()

local taken = 0
for index = 2, #ARGV, ARGV[1] == 'retry' and 2 or 1 do
  if forget(ARGV[index]) == 1 then
    if ARGV[1] == 'retry' then
      hold_if_free(ARGV[index + 1])
      to_queue(ARGV[index + 1])
    end
    taken = taken + 1
  end
end
finish()
return taken
