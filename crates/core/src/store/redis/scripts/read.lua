-- ARGV: the cursor, about how many bytes.
-- Answers where the history stands, a line for each block ("first last-0 checksum"), and the blocks' events. A text for all of a
-- page's blocks, for a client reads one far sooner than a list of lists; not for their events, which Lua is slow to join.
local at = standing()
if not at then return {'unknown'} end
-- No block is larger than the largest: so many at a time stay below the limit. In few steps and of few blocks, so that nobody
-- waits long: a thousand take the server 0.6 ms.
local largest = tonumber(redis.call('HGET', session, 'largest'))
local after, left = ARGV[1] .. '-0', tonumber(ARGV[2])
local places, events = {}, {}
for _ = 1, 64 do
  local count = math.min(math.floor(left / largest), 4000 - #places)
  if count < 1 then
    if #places > 0 then break end
    count = 1
  end
  local page = redis.call('XRANGE', log, '(' .. after, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    local id, fields = entry[1], entry[2]
    if #fields ~= 6 then return {'not ours'} end
    places[#places + 1] = fields[2] .. ' ' .. id .. ' ' .. fields[4]
    events[#events + 1] = fields[6]
    left = left - #fields[6]
    after = id
  end
  if #page < count then break end
end
return {'ok', at, table.concat(places, '\n'), events}
