-- ARGV: fence, lease in ms, retention in ms.
local at, refused = fenced(ARGV[1], 'cancel')
if refused then return refused end
-- PEXPIRE works on a server that is out of memory, and SET does not: the fence holds without it.
if redis.call('PEXPIRE', lease, ARGV[2]) == 0 then
  redis.pcall('SET', lease, at[2], 'PX', ARGV[2])
end
keep(ARGV[3])
return {'ok', at[3]}
