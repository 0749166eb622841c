-- Add what a worker has counted, once, and say how it is.
-- KEYS: loads (a hash: how a worker is, by owner), names (a set of tasks), total, minute, hour, day
--       (hashes: counts), delayed, the same of messages with a key, the state of those, those
--       without one that stood among tokens, queue, then the queue's lists for lower priorities
-- ARGV: owner, its batch's number, how it is, names that are counted apart, the name of the others,
--       seconds for which the minute, the hour and the day are kept, then what, task and amount of each
--       addition; an amount with a point is a sum
-- Returns nothing

local before = redis.call('HGET', KEYS[1], ARGV[1])
if before and tonumber(string.match(before, '^%d+')) >= tonumber(ARGV[2]) then
  return  -- told before, by a call whose reply was lost
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])

for index = 4, 6 do
  if redis.call('EXISTS', KEYS[index]) == 0 then
    local clock = redis.call('TIME')
    local backlog = 0
    for due = 7, 8 do
      backlog = backlog + redis.call('ZCOUNT', KEYS[due], '-inf', clock[1])
    end
    -- In the queue, tokens stand for those of the messages with a key that may start now.
    local keyed = redis.call('HMGET', KEYS[9], 'added', 'removed', 'waiting')
    backlog = backlog - (keyed[1] or 0) + (keyed[2] or 0) + (keyed[3] or 0)
    for list = 10, #KEYS do
      backlog = backlog + redis.call('LLEN', KEYS[list])
    end
    redis.call('HSET', KEYS[index], 'backlog', backlog .. '@' .. clock[1])
    redis.call('EXPIRE', KEYS[index], ARGV[index + 2])
  end
end

local named = {}
for index = 9, #ARGV, 3 do
  local task = ARGV[index + 1]
  if not named[task] then
    local known = redis.call('SISMEMBER', KEYS[2], task) == 1
    if not known and redis.call('SCARD', KEYS[2]) < tonumber(ARGV[4]) then
      redis.call('SADD', KEYS[2], task)
      known = true
    end
    named[task] = known and task or ARGV[5]
  end
  local field, amount = ARGV[index] .. ' ' .. named[task], ARGV[index + 2]
  local add = string.find(amount, '.', 1, true) and 'HINCRBYFLOAT' or 'HINCRBY'
  for key = 3, 6 do
    redis.call(add, KEYS[key], field, amount)
  end
end
