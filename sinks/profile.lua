-- Applies events to users' profiles: all of a call at once, each event once. Run by sinks/redis.py.
--
-- KEYS     three a user: the profile, the book (what was applied), the ids (of events without order)
-- ARGV[1]  MessagePack: {epoch, seconds that a profile lives or 0, ids kept a user, seconds that ids are kept,
--          {names of events that are counted}, {a user's events in order, for each user}}
--          an event: {position or '', order or '', id, time, type, event or '', {trait, value or false, ...}}
--          positions and orders are digits of one length, times are RFC 3339 of one length: they compare as text
-- returns  for each user how many of the events were new, or the error for which none was applied
--
-- Nothing may fail between the first write and the last, for what is written stays: so all that could is read first.

local SLICE = 1000 -- Lua passes some 8,000 arguments at most

local job = cmsgpack.unpack(ARGV[1])
local epoch, lives, most_ids, ids_live, named_list, users = job[1], job[2], job[3], job[4], job[5], job[6]
local now = tonumber(redis.call('TIME')[1])
local named = {}
for _, name in ipairs(named_list) do named[name] = true end

local function read(key, fields)
  local found = {}
  for from = 1, #fields, SLICE do
    local to = math.min(from + SLICE - 1, #fields)
    local values = redis.call('HMGET', key, unpack(fields, from, to))
    for i = from, to do found[fields[i]] = values[i - from + 1] or nil end
  end
  return found
end

local function write(command, key, arguments)
  for from = 1, #arguments, SLICE do
    redis.call(command, key, unpack(arguments, from, math.min(from + SLICE - 1, #arguments)))
  end
end

-- Returns the events that were not applied yet, and what the book has to say after them.
local function new_events(events, known, ids)
  local position, order, floor = known[2] or '', known[3] or '', known[4] or ''
  local is_other = known[1] ~= epoch
  if is_other then -- a new ledger: positions start anew, the order of the archive does not
    position, floor = '', order
  end
  local new, unordered, seen, noted = {}, {}, {}, nil
  for _, event in ipairs(events) do
    if event[1] == '' then
      local id = event[3]
      if not seen[id] and not redis.call('ZSCORE', ids, id) then
        seen[id] = true
        new[#new + 1] = event
        unordered[#unordered + 1] = now
        unordered[#unordered + 1] = id
      end
    elseif event[1] > position then
      position, noted = event[1], true
      if event[2] == '' or event[2] > floor then new[#new + 1] = event end
      if event[2] > order then order = event[2] end
    end
  end
  return new, unordered, noted and {'epoch', epoch, 'position', position, 'order', order, 'floor', floor} or {}
end

local function wrong_ids(ids, events)
  for _, event in ipairs(events) do
    if event[1] == '' then
      local kept = redis.pcall('ZCARD', ids)
      return type(kept) == 'table' and kept.err
    end
  end
  return nil
end

local function apply(profile, book, ids, events)
  local known = redis.pcall('HMGET', book, 'epoch', 'position', 'order', 'floor')
  local was = redis.pcall('HMGET', profile, 'first_seen', 'last_seen', 'last_event')
  local failed = known.err or was.err or wrong_ids(ids, events)
  if failed then
    if string.find(failed, 'WRONGTYPE', 1, true) then return failed end
    error(failed) -- of the server, not of this user
  end

  local new, unordered, noted = new_events(events, known, ids)
  local first, last, last_event = was[1], was[2], was[3]
  local counts, fields, traits, trait_names = {}, {}, {}, {}
  local function count(field)
    if not counts[field] then fields[#fields + 1] = field end
    counts[field] = (counts[field] or 0) + 1
  end
  for _, event in ipairs(new) do
    local at, kind, name, given = event[4], event[5], event[6], event[7]
    count('events')
    count('type:' .. kind)
    if named[name] then count('event:' .. name) end
    if not first or at < first then first = at end
    if not last or at >= last then
      last, last_event = at, name ~= '' and name or kind
    end
    for i = 1, #given, 2 do
      local trait = 'trait:' .. given[i]
      if not traits[trait] then
        trait_names[#trait_names + 1] = trait
        traits[trait] = {at, given[i + 1]}
      elseif at >= traits[trait][1] then
        traits[trait] = {at, given[i + 1]}
      end
    end
  end

  local counted, said = read(profile, fields), read(book, trait_names)
  local set, gone = {}, {}
  if #new > 0 then
    set = {'first_seen', first, 'last_seen', last, 'last_event', last_event}
  end
  for _, field in ipairs(fields) do
    set[#set + 1] = field
    set[#set + 1] = string.format('%.0f', (tonumber(counted[field]) or 0) + counts[field])
  end
  for _, trait in ipairs(trait_names) do
    local at, value = traits[trait][1], traits[trait][2]
    if not said[trait] or at >= said[trait] then -- an event that comes late does not undo a newer one
      noted[#noted + 1] = trait
      noted[#noted + 1] = at
      if value then
        set[#set + 1] = trait
        set[#set + 1] = value
      else
        gone[#gone + 1] = trait
      end
    end
  end

  write('HSET', profile, set)
  write('HDEL', profile, gone)
  write('HSET', book, noted)
  if #unordered > 0 then
    write('ZADD', ids, unordered)
    redis.call('ZREMRANGEBYSCORE', ids, '-inf', now - ids_live)
    redis.call('ZREMRANGEBYRANK', ids, 0, -most_ids - 1)
    redis.call('EXPIRE', ids, ids_live)
  end
  if lives > 0 and #new > 0 then
    redis.call('EXPIRE', profile, lives)
    redis.call('EXPIRE', book, lives)
  end
  return #new
end

local found = {}
for i, events in ipairs(users) do
  found[i] = apply(KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i], events)
end
return found
