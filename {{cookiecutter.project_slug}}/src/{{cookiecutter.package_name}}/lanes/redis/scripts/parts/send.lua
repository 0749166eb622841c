-- How a message is sent that has a key, or is sent once; it is put behind lane.lua.
local function send(message, due)
  if due == '' then
    to_queue(message)
  else
    until_due(message, due)
  end
end

-- A percent-encoded id as it stands in other headers.
local function raw(id)
  local text = string.gsub(id, '%%(%x%x)', function(hex)
    return string.char(tonumber(hex, 16))
  end)
  return string.sub(cjson.encode(text), 2, -2)
end

-- A message of one task as that of another.
local function renamed(message, from, to)
  local once = header(message, 'lane_once')
  local starts, ends = string.find(message, once, 1, true)
  local pattern = string.gsub(raw(from), '%p', '%%%0')
  local new = string.gsub(raw(to), '%%', '%%%%')
  local before = string.gsub(string.sub(message, 1, starts - 1), pattern, new)
  local after = string.gsub(string.sub(message, ends + 1), pattern, new)
  local mode, milliseconds, retries, _, name = string.match(once, '^(%a+) (%d+) (%d+) (%S+) (%S+)$')
  return before .. table.concat({mode, milliseconds, retries, to, name}, ' ') .. after
end

-- Returns '' when it was sent, or the id of the task that holds its lock.
local function send_once(message, due)
  local lock = lock_of(header(message, 'lane_once'))
  if not lock then
    send(message, due)
    return ''
  end
  local retries, id = holder(lock)
  if id == lock.id then
    if retries >= lock.retries then
      return ''  -- it was sent before, by a call whose reply was lost
    end
    redis.call('SET', lock.key, string.format('%d %s', lock.retries, id), 'KEEPTTL')
  elseif not id then
    if lock.retries == 0 or lock.mode ~= 'time' then
      hold(lock)
    end
  elseif lock.retries == 0 then
    -- One that has ended and holds its lock for a time has no place any more.
    if lock.mode == 'latest' and redis.call('PTTL', lock.key) < 0 then
      redis.call('HSET', latest, id, (due == '' and '0' or due) .. ' ' .. renamed(message, lock.id, id))
    end
    return id
  end
  send(message, due)
  return ''
end
