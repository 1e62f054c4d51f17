-- ARGV: channel, id, how long the fence stays, in ms: its writer is told that it is none, where it would else begin anew.
local known = redis.call('HDEL', session, 'epoch')
redis.call('HDEL', session, 'version', 'owner', 'head', 'ended', 'sealed', 'cancel', 'touched', 'largest')
redis.call('PEXPIRE', session, ARGV[3])
redis.call('UNLINK', log, lease)
hint(ARGV[1], ARGV[2])
return {'ok', known}
