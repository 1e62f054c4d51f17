-- ARGV: channel, id, how long the fence stays, in ms: its writer is told that it is none, where it would else begin anew.
local epoch = redis.call('HGET', session, 'epoch')
local known = redis.call('HDEL', session, 'epoch')
if epoch then redis.call('HSET', session, 'gone', epoch) end
redis.call('HDEL', session, 'writer', 'server', 'version', 'owner', 'head', 'ended', 'sealed', 'cancel', 'touched', 'largest')
redis.call('PEXPIRE', session, ARGV[3])
redis.call('UNLINK', log, lease)
hint(ARGV[1], ARGV[2])
return {'ok', known}
