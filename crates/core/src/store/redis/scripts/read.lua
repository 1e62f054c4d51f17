-- ARGV: the cursor, about how many bytes.
local at = standing()
if not at then return {'unknown'} end
-- No block is larger than the largest: so many at a time stay below the limit. A few steps each, so that nobody waits long.
local largest = tonumber(redis.call('HGET', session, 'largest'))
local after, left, blocks = ARGV[1] .. '-0', tonumber(ARGV[2]), {}
for _ = 1, 64 do
  local count = math.floor(left / largest)
  if count < 1 then
    if #blocks > 0 then break end
    count = 1
  end
  local page = redis.call('XRANGE', log, '(' .. after, '+', 'COUNT', count)
  for _, entry in ipairs(page) do
    blocks[#blocks + 1] = entry
    left = left - #entry[2][#entry[2]]
  end
  if #page < count then break end
  after = blocks[#blocks][1]
end
return {'ok', at, blocks}
