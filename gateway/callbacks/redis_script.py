"""What Redis does with one request of a trainer that speaks HTTP, in one step: number, append, remember.

A source holds for one history of the server: `master_replid`, which Redis changes at each start and each
promotion, and takes over from its primary. A history that went on from older data has old counters, and the
numbers after them may be stored already. `run_id` would not do: a primary that was a replica meanwhile keeps it.
So the first request of another history ends the source, as far as is known here, and begins a new one from 1.
"""

from __future__ import annotations

from typing import Final

from trainwire.schemas.wire import WIRE_VERSION

SCRIPT: Final = """
local counters, answer, ends = unpack(KEYS, 1, 3)
local job, attempt, source, ttl, fingerprint, remembered, now, began = unpack(ARGV, 1, 8)
local seen = redis.call('GET', answer)
if seen then
  local whose, receipt = string.match(seen, '^(%%S+) ?(.*)$')
  return {whose == fingerprint and 'again' or 'other', receipt}
end
local told = {'new', ''}

local function append(whose, stream, seq, body)
  redis.call('XADD', stream, '*', 'v', '%(version)s', 'job', job, 'attempt', attempt, 'source', whose,
    'seq', seq, 'enc', 'json', 'body', string.sub(body, 1, -2) .. ',"started_at":' .. began .. '}')
end

local function counted(kinds)
  local counts = {}
  for _, kind in ipairs(kinds) do
    local count = redis.call('HGET', counters, kind)
    if count then counts[#counts + 1] = '"' .. kind .. '":' .. count end
  end
  return counts
end

local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%%x+)') or ''
local known = redis.call('HMGET', counters, 'source', 'history', 'began')
began = known[3] or began
if known[1] and known[2] == history then
  source = known[1]
else
  local produced = counted({'logs', 'metrics', 'checkpoints'})
  if #produced > 0 and redis.call('HEXISTS', counters, 'completions') == 0 then
    produced[#produced + 1] = '"completions":0'
    append(known[1], ends, 1,
      '{"ts":' .. now .. ',"status":"ended","produced":{' .. table.concat(produced, ',') .. '}}')
  end
  redis.call('HDEL', counters, 'logs', 'metrics', 'checkpoints', 'completions')
  redis.call('HSET', counters, 'source', source, 'history', history, 'began', began)
end

local receipt = source
for number = 0, (#ARGV - 8) / 4 - 1 do
  local kind, body, field, value = unpack(ARGV, 9 + 4 * number, 12 + 4 * number)
  local stream = KEYS[4 + number]
  if field == '' or redis.call('HGET', counters, field) ~= value then
    if field ~= '' then redis.call('HSET', counters, field, value) end
    local seq = redis.call('HINCRBY', counters, kind, 1)
    if kind == 'completions' then
      local all = counted({'logs', 'metrics', 'checkpoints', 'completions'})
      body = string.sub(body, 1, -2) .. ',"produced":{' .. table.concat(all, ',') .. '}}'
    end
    append(source, stream, seq, body)
    receipt = receipt .. ' ' .. kind .. '=' .. seq
  end
end
told[2] = receipt
redis.call('EXPIRE', counters, ttl)
redis.call('SET', answer, fingerprint .. ' ' .. receipt, 'EX', remembered)
return told
""" % {"version": WIRE_VERSION}  # noqa: UP031 - Lua is full of braces
