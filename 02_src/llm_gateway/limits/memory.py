"""Limits of one process: all permits of a call or none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llm_gateway.config import SAFETY_OF_REQUESTS, SAFETY_OF_TOKENS, Charge, LimitSettings
from llm_gateway.errors import RequestTooLargeError
from llm_gateway.limits.base import COLUMNS, Level, Reservation, Resource, Wait
from llm_gateway.limits.bucket import SET_ASIDE, TokenBucket
from llm_gateway.tokens import Cost

DAY = 86_400.0
MANY = 20.0  # calls in a second's worth of a limit of tokens: their estimates even out
STILL_MANY = 15.0
PLENTY = 1 + SET_ASIDE  # times its cost: a call that is not LOW finds its permits
SEEN = 20  # calls that tell how large they are
WORDS: dict[Resource, tuple[str, str, str]] = {
    "requests": ("requests", "minute", "rpm"),
    "tokens": ("tokens", "minute", "tpm"),
    "input_tokens": ("input tokens", "minute", "itpm"),
    "output_tokens": ("output tokens", "minute", "otpm"),
    "requests_per_day": ("requests", "day", "rpd"),
}


@dataclass(slots=True, kw_only=True, eq=False)
class _Limit:
    """One limited resource and its figures."""

    resource: Resource
    column: int  # in a Cost
    whole: float  # the provider's limit, a minute or a day; infinite: not known
    rate: float  # permits per second at a scale of 1
    bucket: TokenBucket
    reserved: float = 0.0
    used: float = 0.0
    waits: int = 0
    sharpness: float = 1.0  # times the rate, where calls are so many that their estimates even out
    seen: int = 0  # calls settled
    mean: float = 0.0  # what they used, the latest ones most

    def note(self, amount: float) -> bool:
        """Take what a call of tokens used into account; return whether the limit may be used more or less than so far.

        Where many calls share a second's worth, what one of them was estimated wrong is made up by the others, and as
        much of the limit can be used as of one that is counted exactly.
        """
        self.seen += 1
        self.mean += (amount - self.mean) / min(self.seen, 10 * SEEN)
        enough = MANY if self.sharpness == 1.0 else STILL_MANY
        sharpness = SAFETY_OF_REQUESTS / SAFETY_OF_TOKENS if self.mean * enough <= self.rate else 1.0
        if sharpness == self.sharpness or self.seen < SEEN:
            return False
        self.sharpness = sharpness
        return True


class MemoryLimiter:
    """A `Limiter` for callers in one process. Every operation costs a few microseconds.

    `name` is what the limits belong to, for an error's sentence. Limits can be added and changed while reservations
    are open; a reservation is settled with the limits that it was made under.
    """

    is_shared: ClassVar[bool] = False  # other processes have a part in the limits

    def __init__(self, settings: LimitSettings, charge: Charge, *, now: float, name: str) -> None:
        self._settings = settings
        self._refunds = charge == "actual"
        self._name = name
        self._limits: list[_Limit] = []
        self._dropped: list[_Limit] = []  # a limit that returns goes on counting its takes
        self._binding: tuple[Resource, float] | None = None
        self._open = 0
        self._scale = 1.0
        self._part = 1.0
        self._sharpens = settings.safety is None and not self.is_shared
        given: dict[Resource, int | None] = {
            "requests": settings.rpm,
            "tokens": settings.tpm,
            "input_tokens": settings.itpm,
            "output_tokens": settings.otpm,
            "requests_per_day": settings.rpd,
        }
        for resource, limit in given.items():
            if limit is not None:
                self.set_limit(resource, limit, now)

    @property
    def is_limited(self) -> bool:
        """Whether any resource has a limit."""
        return bool(self._limits)

    @property
    def open(self) -> int:
        """How many reservations are neither settled nor refunded."""
        return self._open

    # --- one call -----------------------------------------------------------------------------------------------

    def check(self, cost: Cost, /) -> None:
        """Raise RequestTooLargeError for a cost that a limit will never let through."""
        for limit in self._limits:
            if cost[limit.column] > limit.whole:
                raise self._too_large(limit, cost)

    def reserve(
        self,
        cost: Cost,
        now: float,
        /,
        *,
        low: bool = False,
        high: bool = False,
    ) -> Reservation | Wait:
        """Take all of `cost`, or nothing and say how long to wait. Raises RequestTooLargeError.

        A `low` call leaves 40 % in a bucket that holds more than 10 s of its rate, as a day's does. All but `high` ones
        leave permits of three calls like them in a bucket that holds fifty or more.
        """
        longest = others = 0.0
        slowest = None
        for limit in self._limits:
            amount = cost[limit.column]
            if amount > limit.whole:
                raise self._too_large(limit, cost)
            bucket = limit.bucket
            if now > bucket.updated:
                bucket.refill(now)
            if bucket.level >= PLENTY * amount and not low:  # whatever is set aside for others
                continue
            wait = bucket.wait(amount if high else bucket.with_aside(amount), now)
            if low:
                others = max(others, wait)
                if amount > 0:
                    wait = max(wait, bucket.wait(amount + bucket.kept_back, now))
            if wait > longest:
                longest, slowest = wait, limit
        if slowest is not None:
            slowest.waits += 1
            self._binding = (slowest.resource, now + longest)
            return Wait(longest, slowest.resource, low and others < longest)
        takes: dict[Resource, int] = {}
        for limit in self._limits:
            amount = cost[limit.column]
            takes[limit.resource] = limit.bucket.take(amount, now)
            limit.reserved += amount
            limit.used += amount
        self._open += 1
        return Reservation(cost, now, takes)

    def free(self, at: float, /) -> Reservation:
        """Return the reservation of a call that began at `at` and took nothing, since there was no limit yet."""
        self._open += 1
        return Reservation(Cost(), at, {})

    def settle(self, reservation: Reservation, actual: Cost, now: float, /) -> None:
        """Replace what was reserved by what was used; more than reserved becomes a debt.

        Less than reserved comes back only where the provider charges what was used, and only as far as its own
        bucket cannot have flowed over since.
        """
        if not self._close(reservation):
            return
        takes, reserved = reservation.takes, reservation.cost
        for limit in self._limits:
            take = takes.get(limit.resource)
            if take is None:
                continue
            column = limit.column
            used = actual[column]
            if column and self._sharpens and limit.note(used):
                limit.bucket.set_rate(*self._flow(limit.resource, limit.rate * limit.sharpness), now)
            over = used - reserved[column]
            if over > 0:
                limit.bucket.charge(over, now)
                limit.used += over
            elif over < 0 and self._refunds:
                limit.bucket.give(-over, now, since=take)
                limit.used += over

    def refund(self, reservation: Reservation, now: float, /) -> None:
        """Give everything back: the call was never sent."""
        if not self._close(reservation):
            return
        for limit in self._limits:
            take = reservation.takes.get(limit.resource)
            if take is not None:
                amount = reservation.cost[limit.column]
                limit.bucket.give(amount, now, since=take)
                limit.used -= amount

    def keep(self, reservation: Reservation, /) -> None:
        """Let the whole reservation count as used."""
        self._close(reservation)

    # --- limits that change -------------------------------------------------------------------------------------

    def set_limit(self, resource: Resource, limit: float, now: float, /) -> None:
        """Let `resource` have a limit of `limit` a minute, or a day, from `now` on; a new one starts full."""
        period = DAY if resource == "requests_per_day" else 60.0
        self._set(resource, limit, limit * self._settings.share(tokens="tokens" in resource) / period, now)

    def set_rate(self, resource: Resource, per_second: float, now: float, /) -> None:
        """Let permits of `resource` come at `per_second` while its limit is not known."""
        self._set(resource, math.inf, per_second, now)

    def set_scale(self, scale: float, now: float, /) -> None:
        """Let all but the day's permits come at `scale` times their rate from `now` on."""
        self._scale = scale
        self._let_flow(now)

    def set_part(self, part: float, now: float, /) -> None:
        """Let only this part of every limit through from `now` on: others use the rest."""
        self._part = part
        self._let_flow(now)

    def drop(self, resource: Resource, /) -> None:
        """Limit `resource` no more."""
        self._dropped += [limit for limit in self._limits if limit.resource == resource]
        self._limits = [limit for limit in self._limits if limit.resource != resource]

    def lower(self, resource: Resource, level: float, now: float, /) -> None:
        """Let no more than `level` permits of `resource` be there at `now`. Never raises a level."""
        for limit in self._limits:
            if limit.resource == resource:
                limit.bucket.lower(level, now)

    def empty_until(self, instant: float, now: float, /) -> None:
        """Let every bucket of a minute's limit be empty at `instant`: from then on permits come, but no burst."""
        for limit in self._limits:
            if limit.resource != "requests_per_day":
                limit.bucket.lower(-max(0.0, instant - now) * limit.bucket.rate, now)

    def limit(self, resource: Resource, /) -> float | None:
        """Return the limit of `resource`, infinite if it is learned; None if it has none."""
        return next((each.whole for each in self._limits if each.resource == resource), None)

    def seconds(self, cost: Cost, /) -> float:
        """Return for how long `cost` alone uses up the limit that it strains most, at a scale of 1."""
        shares = (cost[each.column] / each.rate for each in self._limits if each.resource != "requests_per_day")
        return max(shares, default=0.0)

    # --- looking ------------------------------------------------------------------------------------------------

    def levels(self, now: float, /) -> dict[Resource, Level]:
        """Return where each limit stands."""
        levels: dict[Resource, Level] = {}
        for limit in self._limits:
            bucket = limit.bucket
            bucket.refill(now)
            levels[limit.resource] = Level(
                limit=limit.whole if math.isfinite(limit.whole) else None,
                rate=bucket.rate,
                burst=bucket.burst,
                level=bucket.level,
                reserved=limit.reserved,
                used=limit.used,
                waits=limit.waits,
            )
        return levels

    def binding(self, now: float, /) -> Resource | None:
        """Return the limit that the latest reservation waits for, None once that wait is over."""
        return self._binding[0] if self._binding is not None and now < self._binding[1] else None

    # --- inside -------------------------------------------------------------------------------------------------

    def _set(self, resource: Resource, whole: float, rate: float, now: float) -> None:
        limit = next((each for each in (*self._limits, *self._dropped) if each.resource == resource), None)
        if limit is None:
            per_second, burst = self._flow(resource, rate)
            bucket = TokenBucket.full(rate=per_second, burst=burst, now=now)
            limit = _Limit(resource=resource, column=COLUMNS[resource], whole=whole, rate=rate, bucket=bucket)
            self._limits.append(limit)
        elif limit in self._dropped:
            self._dropped.remove(limit)
            self._limits.append(limit)
        limit.whole, limit.rate = whole, rate
        limit.bucket.set_rate(*self._flow(resource, rate * limit.sharpness), now)

    def _let_flow(self, now: float) -> None:
        for limit in self._limits:
            limit.bucket.set_rate(*self._flow(limit.resource, limit.rate * limit.sharpness), now)

    def _flow(self, resource: Resource, rate: float) -> tuple[float, float]:
        """Return the rate and the burst of a bucket whose limit flows back at `rate`."""
        rate *= self._part
        if resource == "requests_per_day":
            return rate, rate * DAY
        rate *= self._scale
        burst = rate * self._settings.burst
        return rate, max(1.0, burst) if resource == "requests" else burst  # half a request is none

    def _close(self, reservation: Reservation) -> bool:
        """Take `reservation` out of the open ones; False if it was closed before."""
        if not reservation.open:
            return False
        reservation.open = False
        self._open -= 1
        for limit in self._limits:
            if not self._open:
                limit.reserved = 0.0  # the last one leaves no rounding behind
            elif limit.resource in reservation.takes:
                limit.reserved -= reservation.cost[limit.column]
        return True

    def _too_large(self, limit: _Limit, cost: Cost) -> RequestTooLargeError:
        what, period, key = WORDS[limit.resource]
        cost_of_it = cost[limit.column]
        return RequestTooLargeError(self._name, cost=cost_of_it, limit=limit.whole, what=what, period=period, key=key)
