"""Who of one class goes next: agents take turns by the tokens they were served."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from operator import itemgetter

from llm_gateway.models import RequestPriority
from llm_gateway.queue.ticket import Ticket

REMEMBERED = 10_000  # idle agents of a class whose counters are kept


class _Line:
    """What waits of one agent, oldest first; a retry takes its old place."""

    __slots__ = ("agent", "is_aside", "priority", "served", "tickets", "turn")

    def __init__(self, agent: str | None, priority: RequestPriority, served: float) -> None:
        self.agent = agent
        self.priority = priority
        self.served = served
        self.turn: tuple[float, int] | None = None  # the valid one of its entries in the class's turns
        self.tickets: list[tuple[int, Ticket]] = []
        self.is_aside = False  # it has no turn

    def __lt__(self, other: _Line) -> bool:
        """Whether it goes before one with the same turn: an outdated entry of the same agent's; it does not matter."""
        return False

    def head(self) -> Ticket | None:
        tickets = self.tickets
        while tickets:
            if self.holds(tickets[0]):
                return tickets[0][1]
            heapq.heappop(tickets)
        return None

    def holds(self, entry: tuple[int, Ticket]) -> bool:
        """Whether a ticket that was put here still waits here, and not in another class or another queue."""
        place, ticket = entry
        return ticket.waiting and ticket.priority is self.priority and ticket.place == place


class FairLine:
    """The ready tickets of one class, in the order in which they go.

    Virtual token counters as in Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (arXiv
    2401.00588): next is the agent that was served the fewest tokens, and one that returns from idleness starts no
    lower than those that waited meanwhile, so that it brings no credit. Between two agents that both wait, the gap in
    served tokens stays within twice the largest cost. Requests that name no agent are one agent.

    A ticket that left, or was lifted to another class, is skipped, and swept out once such tickets are the majority.
    Every operation costs at most O(log n), the sweep O(1) for each ticket that left.
    """

    def __init__(self, priority: RequestPriority) -> None:
        self._priority = priority
        self._lines: dict[str | None, _Line] = {}
        self._turns: list[tuple[float, int, _Line]] = []  # by tokens served, then age; may hold outdated entries
        self._aside: list[_Line] = []
        self._idle: OrderedDict[str | None, float] = OrderedDict()
        self._reached = 0.0  # the counter of whoever was served last: nobody starts below it
        self._entries = 0  # tickets in all lines, those that left included

    def push(self, ticket: Ticket) -> None:
        """Take `ticket` in, at its place within its agent's line."""
        agent = ticket.agent
        line = self._lines.get(agent)
        if line is None:
            served = max(self._idle.pop(agent, 0.0), self._reached)
            line = self._lines[agent] = _Line(agent, self._priority, served)
        heapq.heappush(line.tickets, (ticket.place, ticket))
        self._entries += 1
        if line.head() is ticket:
            self._bring_forward(line, ticket)

    def best(self) -> Ticket | None:
        """Return the ticket whose turn it is, and leave it here; None if none waits."""
        turns = self._turns
        while turns:
            served, place, line = turns[0]
            head = line.head() if (served, place) == line.turn else None
            if head is None:  # outdated, or the last ticket of this agent has left
                heapq.heappop(turns)
                if (served, place) == line.turn:
                    self._retire(line)
            elif (served, place) == (line.served, head.place):
                return head
            else:
                line.turn = (line.served, head.place)
                heapq.heapreplace(turns, (*line.turn, line))
        return None

    def set_aside(self, agent: str | None) -> None:
        """Give an agent no turn until `bring_back`."""
        line = self._lines.get(agent)
        if line is not None and not line.is_aside:
            line.is_aside, line.turn = True, None
            self._aside.append(line)

    def bring_back(self) -> None:
        """Give those that were set aside their turns again."""
        aside, self._aside = self._aside, []
        for line in aside:
            line.is_aside = False
            head = line.head()
            if head is None:
                self._retire(line)
            else:
                self._bring_forward(line, head)

    def take(self, ticket: Ticket) -> None:
        """Take out the ticket that `best` returned, and charge its agent the cost."""
        line = self._lines[ticket.agent]
        heapq.heappop(line.tickets)
        self._entries -= 1
        self._reached = max(self._reached, line.served)
        line.served += ticket.cost

    def pull(self, ticket: Ticket) -> None:
        """Take out a ticket that waits here before its turn, and charge its agent the cost. O(n) of that agent's."""
        line = self._lines[ticket.agent]
        line.tickets.remove((ticket.place, ticket))
        heapq.heapify(line.tickets)
        self._entries -= 1
        line.served += ticket.cost

    def charge(self, agent: str | None, tokens: float) -> None:
        """Charge an agent `tokens` more than was estimated; fewer if negative."""
        line = self._lines.get(agent)
        if line is not None:
            line.served += tokens
            if tokens < 0 and len(self._lines) > 1:  # its turn may come sooner; a later one is noticed by `best`
                head = line.head()
                if head is not None:
                    self._bring_forward(line, head)
        elif agent in self._idle:
            self._idle[agent] += tokens

    def sweep(self, waiting: int) -> None:
        """Keep memory proportional to the `waiting` tickets."""
        if self._entries <= 2 * waiting + 64 and len(self._turns) <= 2 * len(self._lines) + 64:
            return
        for line in list(self._lines.values()):
            line.tickets = [entry for entry in line.tickets if line.holds(entry)]
            heapq.heapify(line.tickets)
            if not line.tickets:
                self._retire(line)
        self._entries = sum(len(line.tickets) for line in self._lines.values())
        self._renew_turns()

    def in_order(self, most: int) -> Iterator[Ticket]:
        """Iterate over the first `most` of each agent, in the order in which they go if nobody else comes."""
        waiting = {
            line: heapq.nsmallest(most, [entry for entry in line.tickets if line.holds(entry)], itemgetter(0))[::-1]
            for line in self._lines.values()
        }
        turns = [(line.served, tickets[-1][0], line) for line, tickets in waiting.items() if tickets]
        heapq.heapify(turns)
        while turns:
            served, _, line = turns[0]
            ticket = waiting[line].pop()[1]
            if waiting[line]:
                heapq.heapreplace(turns, (served + ticket.cost, waiting[line][-1][0], line))
            else:
                heapq.heappop(turns)
            yield ticket

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over all that wait, in no particular order."""
        for line in self._lines.values():
            yield from (entry[1] for entry in line.tickets if line.holds(entry))

    def __len__(self) -> int:
        """How many entries are held, those that left and are not swept out yet included."""
        return self._entries + len(self._turns)

    def _bring_forward(self, line: _Line, head: Ticket) -> None:
        """Enter the turn of a line if it comes sooner than the one entered; a later one is noticed by `best`."""
        turn = (line.served, head.place)
        if line.is_aside:
            return
        if line.turn is None or turn < line.turn:
            line.turn = turn
            heapq.heappush(self._turns, (*turn, line))
            if len(self._turns) > 2 * len(self._lines) + 64:
                self._renew_turns()

    def _renew_turns(self) -> None:
        """Enter every line once."""
        self._turns = []
        for line in self._lines.values():
            head = line.head()
            line.turn = None if head is None or line.is_aside else (line.served, head.place)
            if line.turn is not None:
                self._turns.append((*line.turn, line))
        heapq.heapify(self._turns)

    def _retire(self, line: _Line) -> None:
        line.turn = None
        if self._lines.get(line.agent) is line:
            del self._lines[line.agent]
            if line.served > self._reached:  # else it would be lifted anyway
                self._idle[line.agent] = line.served
                if len(self._idle) > REMEMBERED:
                    self._idle.popitem(last=False)
