-- One decision about one credential and model, all or nothing. KEYS[1] holds the whole state; ARGV[1] is what a member,
-- one process's part in it, says and asks, as JSON; the answer is JSON. What goes before this text defines `now`, the
-- server's clock in seconds, and the constants of limits/bucket.py and limits/shared/protocol.py.
-- The buckets decide as those of limits/bucket.py: change both together.

local said = cjson.decode(ARGV[1])
local stored = redis.call('GET', KEYS[1])
local state = stored and cmsgpack.unpack(stored)
if not state then
    state = {born = string.format('%.6f', now) .. said.me, version = 0, buckets = {}, members = {}, opens_at = -INFINITE, refusals = 0}
end
local buckets, members = state.buckets, state.members
local same = said.born == state.born  -- the state is the one that the member knows: nobody emptied the store

-- Permits of one resource. `out` is what members hold and have not yet reported as spent or unspent: to the provider
-- it is still there, so level + out never exceeds the burst.

local function refill(bucket)
    local elapsed = now - bucket.at
    if elapsed > 0 then
        bucket.level = math.min(bucket.burst - bucket.out, bucket.level + elapsed * bucket.rate)
        bucket.at = now
    end
end

local function seconds_until(bucket, cost, ahead)
    local need = math.min(bucket.burst, cost)
    local missing = need + ahead - bucket.level
    if missing <= need * ROUNDING then return 0 end
    if bucket.rate <= 0 then return LONGEST end
    return math.min(LONGEST, math.max(SHORTEST_WAIT, missing / bucket.rate))
end

local function take(bucket, cost)
    local peak = math.max(bucket.level, 0) + bucket.out
    local peaks, takes = bucket.peaks, bucket.takes
    local number = takes[#takes] + 1
    local nearly = peak + bucket.burst / GRAIN
    while #peaks > 0 and peaks[#peaks] <= nearly do
        peak = math.max(peak, table.remove(peaks))
        table.remove(takes)
    end
    peaks[#peaks + 1] = peak
    takes[#takes + 1] = number
    bucket.level = bucket.level - cost
    return number
end

local function give(bucket, amount, since)
    local highest = bucket.level + bucket.out
    for place, number in ipairs(bucket.takes) do
        if number > since then
            highest = math.max(highest, bucket.peaks[place])
            break
        end
    end
    local given = math.min(amount, bucket.burst - highest)
    if given <= 0 then return end
    bucket.level = math.min(bucket.burst - bucket.out, bucket.level + given)
    local peaks = bucket.peaks
    for place = 1, #peaks do peaks[place] = peaks[place] + given end
    while #peaks > 1 and peaks[2] >= bucket.burst do
        table.remove(peaks, 1)
        table.remove(bucket.takes, 1)
    end
end

local function flow(bucket, rate, burst)
    if burst > bucket.burst then
        for place = 1, #bucket.peaks do bucket.peaks[place] = bucket.peaks[place] + burst - bucket.burst end
    end
    bucket.rate, bucket.burst = rate, burst
    bucket.level = math.min(bucket.level, burst - bucket.out)
end

local function kept_back(bucket)
    return bucket.burst > DEEP * bucket.rate and KEPT_BACK * bucket.burst or 0
end

for _, bucket in pairs(buckets) do refill(bucket) end

-- Who is here. A member's unspent share comes back with its next word; without one it is lost when it ends, and its
-- slots come back when the member's own time is up.

local me = members[said.me] or {slots = 0}
members[said.me] = me
me.ends = now + said.ttl
local unspent = {}
if said.share and same then
    if me.share and me.share.number == said.share.number and me.share.ends >= now then
        for name, amount in pairs(said.share.unspent) do unspent[name] = math.min(amount, me.share.amounts[name] or 0) end
    else
        for name, amount in pairs(said.share.unspent) do
            if buckets[name] then give(buckets[name], amount, said.share.takes[name]) end
        end
    end
end
me.share = nil
local peers = 0
for _, bucket in pairs(buckets) do bucket.out = 0 end
for id, member in pairs(members) do
    if member.ends < now then
        members[id] = nil
    else
        peers = peers + 1
        if member.share and member.share.ends < now then member.share = nil end
        if member.want and member.want.ends < now then member.want = nil end
        for name, amount in pairs(member.share and member.share.amounts or {}) do
            if buckets[name] then buckets[name].out = buckets[name].out + amount end
        end
    end
end
for name, amount in pairs(unspent) do
    local bucket = buckets[name]
    if bucket then bucket.level = math.min(bucket.burst - bucket.out, bucket.level + amount) end
end

-- What the limits are: a member that knows the latest version may write the next one.

if said.view and (said.version == state.version or said.override) then
    state.version, state.view = state.version + 1, said.view
    for _, bucket in pairs(buckets) do bucket.off = true end
    for _, each in ipairs(said.flows) do
        local name, rate, burst, level = each[1], each[2], each[3], each[4]
        local bucket = buckets[name]
        if bucket then
            bucket.off = nil
            flow(bucket, rate, burst)
        else
            -- A store that was emptied tells nothing about what was used.
            buckets[name] = {rate = rate, burst = burst, level = math.min(level, burst), at = now, out = 0,
                             takes = {0}, peaks = {INFINITE}}
        end
    end
end

-- What happened: permits given back, used beyond what was reserved, and levels that are known to be lower.

for _, each in ipairs(said.gives or {}) do
    for name, amount in pairs(each.amounts) do
        if buckets[name] and each.born == state.born then give(buckets[name], amount, each.takes[name]) end
    end
end
for name, amount in pairs(said.charges or {}) do
    if buckets[name] and amount > 0 then take(buckets[name], amount) end
end
for name, level in pairs(said.levels or {}) do
    if buckets[name] then buckets[name].level = math.min(buckets[name].level, level) end
end
if said.shut then
    state.opens_at = math.max(state.opens_at, now + said.shut)
    state.refusals = math.max(state.refusals, said.refusals)
elseif said.answered then
    state.refusals = 0
end
for name, bucket in pairs(buckets) do
    if said.empty_in and name ~= 'requests_per_day' then
        bucket.level = math.min(bucket.level, -math.max(0, said.empty_in) * bucket.rate)
    end
end

-- What it asks for, behind those who came first; who waits for the provider's user comes before them.

local reply = {now = now, born = state.born, version = state.version, peers = peers}
if said.version ~= state.version then reply.view = state.view end
me.slots = said.busy
local ask = said.ask
if not ask then me.want = nil end

local function standing()
    local rank = me.want and math.min(me.want.rank, now + ask.delay) or now + ask.delay
    local ahead, ahead_slots, others, for_slots = {}, 0, 0, 0
    for id, member in pairs(members) do
        local want = id ~= said.me and member.want
        if want then
            others = others + 1
            if want.for_slots then for_slots = for_slots + 1 end
            local first = want.rank < rank or (want.rank == rank and id < said.me)
            if first and (ask.low or not want.only_low) then
                ahead_slots = ahead_slots + 1
                for name, amount in pairs(want.need) do ahead[name] = (ahead[name] or 0) + amount end
            end
        end
    end
    return rank, ahead, ahead_slots, others, for_slots
end

local function free_slots(ahead, for_slots)
    if not said.slots then return math.huge end
    local open = said.slots - (ask.high and 0 or math.floor(said.slots / HEADROOM))
    local free = open - ahead
    for _, member in pairs(members) do free = free - member.slots end
    -- Nobody says for how many slots it waits: as long as others wait, each may hold an equal part.
    if for_slots > 0 and not ask.high then
        free = math.min(free, math.max(1, math.floor(open / (for_slots + 1))) - me.slots)
    end
    return free
end

local function waits(ahead)
    local longest, others, slowest = 0, 0, nil
    for _, name in ipairs(RESOURCES) do
        local bucket = buckets[name]
        if bucket and not bucket.off then
            local amount = ask.need[name] or 0
            local before = amount > 0 and ahead[name] or 0
            local wait = seconds_until(bucket, amount, before)
            others = math.max(others, wait)
            if ask.low and amount > 0 then
                wait = seconds_until(bucket, amount + kept_back(bucket), before)
            end
            if wait > longest then longest, slowest = wait, name end
        end
    end
    return longest, slowest, ask.low and others < longest
end

local function grant(ahead, slots, others)
    local times = math.min(ask.times, slots)
    for name, amount in pairs(ask.need) do
        local bucket = buckets[name]
        if bucket and not bucket.off and amount > 0 then
            local there = bucket.level - (ahead[name] or 0) - (ask.low and kept_back(bucket) or 0)
            times = math.min(times, math.floor(math.min(there, bucket.rate * (others > 0 and TURN or SHARE)) / amount))
        end
    end
    times = math.max(1, times)
    local amounts, takes, low = {}, {}, true
    for name, bucket in pairs(buckets) do
        if not bucket.off then
            local amount = (ask.need[name] or 0) * times
            amounts[name] = amount
            takes[name] = take(bucket, amount)
            if not ask.spent then bucket.out = bucket.out + amount end
            if bucket.level < kept_back(bucket) then low = false end
        end
    end
    state.shares = (state.shares or 0) + 1
    if not ask.spent then me.share = {number = state.shares, amounts = amounts, ends = now + VALID} end
    if said.slots then me.slots = me.slots + times end
    me.want = nil
    reply.share = {number = state.shares, amounts = amounts, takes = takes, low = low, slots = times}
end

if ask then
    local rank, ahead, ahead_slots, others, for_slots = standing()
    local slots = free_slots(ahead_slots, for_slots)
    local wait, resource, only_low = waits(ahead)
    if slots < 1 and wait < SLOT_WAIT then wait, resource, only_low = SLOT_WAIT, 'slots', false end
    if state.opens_at > now then wait, resource, only_low = state.opens_at - now, 'gate', false end
    if state.version == 0 then wait, resource, only_low = RECHECK, 'share', false end  -- the limits come with its next word
    if wait > 0 then
        reply.wait, reply.resource, reply.only_low = wait, resource, only_low
        me.want = {need = ask.need, rank = rank, ends = now + math.min(wait, RECHECK) + GRACE, only_low = only_low,
                   for_slots = resource == 'slots'}
    else
        grant(ahead, slots, others)
    end
end
if said.bye then members[said.me] = nil end

reply.gate = math.max(0, state.opens_at - now)
reply.refusals = state.refusals
reply.levels = {}
for name, bucket in pairs(buckets) do
    if not bucket.off then reply.levels[name] = string.format('%.17g', bucket.level) end  -- JSON has but 14 digits here
end
redis.call('SET', KEYS[1], cmsgpack.pack(state), 'EX', KEPT)
return cjson.encode(reply)
