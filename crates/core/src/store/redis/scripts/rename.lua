-- ARGV: fence, epoch, channel, id.
local _, refused = fenced(ARGV[1])
if refused then return refused end
redis.call('HSET', session, 'epoch', ARGV[2])
hint(ARGV[3], ARGV[4])
return {'ok', standing()}
