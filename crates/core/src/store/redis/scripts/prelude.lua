-- What the scripts share. An answer is a list whose first item is a word: "ok" with what was asked for, or why not.

-- KEYS of every script: the session's fields, its log, its lease.
local session, log, lease = KEYS[1], KEYS[2], KEYS[3]

-- The server's clock in Unix milliseconds, as text: a Lua number of that size would be written as 1.7e+12.
local function now()
  local at = redis.call('TIME')
  return string.format('%.0f', at[1] * 1000 + math.floor(at[2] / 1000))
end

-- A hint is only a hint: without the right to publish, the write stands. Redis 7 names its version to scripts, and has shards.
local function hint(channel, id)
  redis.pcall(redis.REDIS_VERSION_NUM and 'SPUBLISH' or 'PUBLISH', channel, id)
end

-- The fields, if `fence` may write; else the refusal. A fence that is newer than what the server knows was given by a server
-- that had more: to its writer, this one has forgotten the session.
local function fenced(fence, ...)
  local at = redis.call('HMGET', session, 'fence', 'owner', ...)
  if not at[1] or tonumber(fence) > tonumber(at[1]) then return nil, {'unknown'} end
  if at[1] ~= fence or not at[2] then return nil, {'fenced'} end
  return at
end

-- How long somebody's lease runs, in milliseconds; 0: it is free.
local function leased()
  return math.max(redis.call('PTTL', lease), 0)
end

local function standing()
  local at = redis.call('HMGET', session, 'epoch', 'head', 'ended', 'touched', 'sealed', 'version')
  return at[1] and {at[1], at[2], at[3], at[4], at[5] or '0', at[6], leased()}
end

-- Fields and log end together, in the same millisecond: a script sees one time from its start to its end. A lease outlasts
-- neither, however short the retention is.
local function keep(retention)
  local ms = string.format('%.0f', math.max(tonumber(retention), 2 * leased()))
  redis.call('PEXPIRE', session, ms)
  redis.call('PEXPIRE', log, ms)
end
