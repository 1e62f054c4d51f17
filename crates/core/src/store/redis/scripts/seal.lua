-- ARGV: fence, head, channel, id.
local at, refused = fenced(ARGV[1], 'head', 'sealed')
if refused then return refused end
if at[3] ~= ARGV[2] then return {'not_next', tonumber(at[3])} end
if at[4] then return {'ok', 0} end
redis.call('HSET', session, 'sealed', '1')
hint(ARGV[3], ARGV[4])
return {'ok', 1}
