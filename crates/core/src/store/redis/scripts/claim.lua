-- ARGV: owner, epoch, lease in ms, a fence by the caller's clock, retention in ms, the format's version, an epoch for a new life.
local owner, epoch, ms, fence, retention, version, another = unpack(ARGV)
local at = redis.call('HMGET', session, 'epoch', 'version', 'fence', 'writer', 'server', 'gone')
if not at[1] and at[6] == epoch then return {'unknown'} end -- deleted, not lost
if at[1] then
  if at[2] ~= version then return {'version', at[2]} end
  local holder = redis.call('GET', lease)
  if holder and holder ~= owner then return {'held', math.max(leased(), 1)} end
end
-- By the clock, so that a claim that a failover lost and the one given after it differ; above the last one in any case.
if at[3] and tonumber(fence) <= tonumber(at[3]) then
  fence = string.format('%.0f', at[3] + 1)
end
-- After a restart or a failover, events that readers have seen may be missing: the last writer knows, and sends them again.
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
if at[1] and at[5] ~= server and at[4] ~= owner then
  redis.call('HSET', session, 'epoch', another)
end
redis.call('HSET', session, 'fence', fence, 'owner', owner, 'writer', owner, 'server', server, 'touched', now())
redis.call('HDEL', session, 'cancel')
if not at[1] then
  redis.call('HSET', session, 'version', version, 'epoch', epoch, 'head', '0', 'ended', '0', 'largest', '1')
  redis.call('DEL', log) -- what an eviction left of an earlier history is not this one's
end
redis.call('SET', lease, owner, 'PX', ms)
keep(retention)
return {'ok', fence, standing()}
