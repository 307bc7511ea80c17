-- Lends money of shared budgets. KEYS[1] holds all of them; ARGV[1] is what a process says of its parts, as JSON; the
-- answer is JSON. What goes before this text defines `now` and the constants of limits/shared/protocol.py. All that was
-- lent and not given back counts against a budget, so that the loans never exceed it, whoever dies.

local said = cjson.decode(ARGV[1])
local stored = redis.call('GET', KEYS[1])
local state = stored and cmsgpack.unpack(stored) or {born = string.format('%.6f', now) .. said.me, budgets = {}, opens_at = 0}
-- After the store was emptied everybody tells anew what was lent; until then nobody knows what is left.
if said.born ~= '' and said.born ~= state.born then state.opens_at = math.max(state.opens_at, now + QUIET) end

local parts = {}
for name, part in pairs(said.parts) do
    local budget = state.budgets[name] or {gone = 0, members = {}}
    state.budgets[name] = budget
    budget.gone = math.max(budget.gone, part.gone)
    budget.members[said.me] = {lent = part.lent, spent = part.spent, at = now}
    budget.lent, budget.spent, budget.count = budget.gone, budget.gone, 0
    for id, member in pairs(budget.members) do
        if member.at + KEPT < now or (said.bye and id == said.me) then
            local left = id == said.me and member.spent or member.lent
            budget.gone = budget.gone + left
            budget.lent, budget.spent = budget.lent + left, budget.spent + left
            budget.members[id] = nil
        else
            budget.lent, budget.spent = budget.lent + member.lent, budget.spent + member.spent
            budget.count = budget.count + 1
        end
    end
    local loan = 0
    if said.bye then part.need = 0 end
    if part.need > 0 and budget.lent + part.need > part.limit * (1 + ROUNDING) then
        budget.wanted_at = now
    elseif part.need > 0 and state.opens_at <= now then
        -- Some more than it needs, so that not every call has to ask.
        local left = math.max(0, part.limit - budget.lent - part.need)
        loan = part.need + math.min(part.need * MORE, left / (2 * math.max(1, budget.count)))
        budget.lent = budget.lent + loan
        budget.members[said.me].lent = part.lent + loan
    end
    parts[name] = {
        loan = string.format('%.17g', loan),
        gone = string.format('%.17g', budget.gone),
        lent = string.format('%.17g', budget.lent),
        spent = string.format('%.17g', budget.spent),
        wanted = budget.wanted_at ~= nil and budget.wanted_at + WANTED > now,
    }
end
redis.call('SET', KEYS[1], cmsgpack.pack(state), 'EX', KEPT)
return cjson.encode({born = state.born, parts = parts})
