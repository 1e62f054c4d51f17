-- ARGV: fence, channel, id, retention in ms.
local _, refused = fenced(ARGV[1])
if not refused then
  redis.call('HDEL', session, 'owner')
  redis.call('DEL', lease)
  keep(ARGV[4])
  hint(ARGV[2], ARGV[3])
end
return {'ok'}
