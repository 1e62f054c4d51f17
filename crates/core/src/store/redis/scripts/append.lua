-- ARGV: fence, first seq, last seq, the last completion's seq or '', checksum, events, retention in ms, channel, id.
local fence, first, last, ended, sum, events, retention, channel, id = unpack(ARGV)
local at, refused = fenced(fence, 'head', 'sealed', 'largest')
if refused then return refused end
local head = tonumber(at[3])
if tonumber(last) <= head then return {'ok', head} end
if at[4] then return {'sealed'} end
if tonumber(first) ~= head + 1 then return {'not_next', head} end
-- The first write is one that a server out of memory refuses: nothing is written by halves.
redis.call('XADD', log, last .. '-0', 'first', first, 'sum', sum, 'events', events)
redis.call('HSET', session, 'head', last, 'touched', now())
if ended ~= '' then redis.call('HSET', session, 'ended', ended) end
if #events > tonumber(at[5]) then redis.call('HSET', session, 'largest', #events) end
keep(retention)
hint(channel, id)
return {'ok', tonumber(last)}
