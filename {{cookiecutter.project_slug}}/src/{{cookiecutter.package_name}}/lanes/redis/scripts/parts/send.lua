-- How a message is sent that has a key, or is sent once; it is put behind lane.lua.
local function send(message, due)
  if due == '' then
    to_queue(message)
  else
    until_due(message, due)
  end
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
    if lock.mode == 'latest' then
      local of_its_own = string.gsub(lock.id, '%p', '%%%0')
      local renamed = string.gsub(message, of_its_own, (string.gsub(id, '%%', '%%%%')))
      redis.call('HSET', latest, id, (due == '' and '0' or due) .. ' ' .. renamed)
    end
    return id
  end
  send(message, due)
  return ''
end
