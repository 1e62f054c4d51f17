-- ARGV: reason, channel, id.
if redis.call('HEXISTS', session, 'epoch') == 0 then return {'unknown'} end
redis.call('HSETNX', session, 'cancel', ARGV[1])
hint(ARGV[2], ARGV[3])
return {'ok'}
