-- What scripts of dead letters share; it is put in front of them.
-- KEYS: dead, dead messages, dead reports, dead ran, dead totals
-- `dead ran` holds the letters of tasks that ran, in the order of `dead`. `dead totals` holds how many ran
-- and how many never did, and their bytes: `ran`, `ran_bytes`, `never`, `never_bytes`.
local function total(field)
  return tonumber(redis.call('HGET', KEYS[5], field) or 0)
end

local function add(number, kind, sign)
  local bytes = redis.call('HSTRLEN', KEYS[2], number) + redis.call('HSTRLEN', KEYS[3], number)
  redis.call('HINCRBY', KEYS[5], kind, sign)
  redis.call('HINCRBY', KEYS[5], kind .. '_bytes', sign * bytes)
end

-- Note a letter that is there.
local function count(number, at, ran)
  if ran then
    redis.call('ZADD', KEYS[4], at, number)
  end
  add(number, ran and 'ran' or 'never', 1)
end

-- Delete a letter; returns 1, or 0 where it was gone already.
local function forget(number)
  local kind = redis.call('ZREM', KEYS[4], number) == 1 and 'ran' or 'never'
  if redis.call('ZREM', KEYS[1], number) == 0 then
    return 0
  end
  add(number, kind, -1)
  redis.call('HDEL', KEYS[2], number)
  redis.call('HDEL', KEYS[3], number)
  return 1
end

-- A release that did not count letters may have left, or taken, some: count all of them anew, once.
local function count_anew()
  if total('ran') + total('never') == redis.call('ZCARD', KEYS[1]) then
    return
  end
  redis.call('DEL', KEYS[4], KEYS[5])
  local sums = {ran = 0, ran_bytes = 0, never = 0, never_bytes = 0}
  local letters = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for index = 1, #letters, 2 do
    local number, report = letters[index], redis.call('HGET', KEYS[3], letters[index]) or ''
    local reason = string.match(string.sub(report, 1, 200), '"reason": "(%a+)"')
    local kind = 'never'
    if reason == 'failed' or reason == 'poison' then
      kind = 'ran'
      redis.call('ZADD', KEYS[4], letters[index + 1], number)
    end
    sums[kind] = sums[kind] + 1
    local bytes = #report + redis.call('HSTRLEN', KEYS[2], number)
    sums[kind .. '_bytes'] = sums[kind .. '_bytes'] + bytes
  end
  for field, sum in pairs(sums) do
    redis.call('HSET', KEYS[5], field, string.format('%.0f', sum))
  end
end
