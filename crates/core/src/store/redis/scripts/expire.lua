-- ARGV: an age in ms. Removes a history that is older and that nobody writes.
local touched = redis.call('HGET', session, 'touched')
if not touched or leased() > 0 or tonumber(now()) - tonumber(touched) <= tonumber(ARGV[1]) then return {'ok', 0} end
redis.call('UNLINK', session, log)
return {'ok', 1}
