"""Seeded misfortune for the mock: rate limits, outages, slow, truncated and cut answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Annotated, Any

from pydantic import Field, ValidationError

from llm_gateway.config import of_type
from llm_gateway.errors import ConfigurationError
from llm_gateway.mock_gateway.answers import ASKED
from llm_gateway.mock_gateway.matching import Asked
from llm_gateway.mock_gateway.responses import Part, Reply, ScriptedError, ScriptedStream
from llm_gateway.models import Numeric
from llm_gateway.sentences import sentence_of

Chance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Numeric]

STORM = (1.0, 20.0)  # seconds that a storm of 429s lasts
TELLING = 0.5  # the share of the storms that tell when they end
OUTAGE = (0.5, 10.0)  # seconds
SLOWNESS = (0.05, 1.2)  # of the provider's timeout, so that a few of the slow answers come too late
LATEST_BREAK = 5  # pieces of a stream; a break before the first one is the gateway's to mend, a later one is not


class Chaos(Part):
    """How often what goes wrong: chances from 0 to 1, each for one provider call.

    What befalls a call depends on the seed, on what it asks and on how often that was asked before, not on the order
    of different requests. A storm and an outage also hit whatever else asks the same model while they last.
    """

    seed: Annotated[int, Numeric] = 0
    rate_limits: Chance = 0.0
    """That a storm of 429s begins, 1 to 20 s long; half of the storms tell when they end."""
    outages: Chance = 0.0
    """That an outage begins, 0.5 to 10 s long: 503, 529 or no connection at all."""
    slow: Chance = 0.0
    """That the answer takes up to 1.2 of the provider's timeout."""
    truncated: Chance = 0.0
    """That the answer ends early without saying so; in a stream, after a few pieces."""
    cut_streams: Chance = 0.0
    """That the connection of a streamed answer breaks after a few pieces."""


def load_chaos(source: Chaos | Mapping[str, Any] | None) -> Chaos | None:
    """Return the chaos that a mapping describes. Raises ConfigurationError, one sentence that names the field."""
    if source is None or isinstance(source, Chaos):
        return source
    if not isinstance(source, Mapping):
        raise ConfigurationError(f"The mock's chaos is {of_type(source)}; give a dict, such as {{'rate_limits': 0.2}}.")
    try:
        return Chaos.model_validate(source)
    except ValidationError as error:
        field, reason = sentence_of(error, Chaos)
        raise ConfigurationError(f"The mock's chaos: {field}: {reason}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What befalls one call."""

    instead: Reply | None = None  # of the scripted answer, which then is not used up
    delay: float = 0.0  # seconds
    stream: ScriptedStream | None = None  # where and why it breaks

    def upon(self, reply: Reply) -> Reply:
        """Return what becomes of a scripted answer."""
        changes: dict[str, Any] = {"latency": reply.latency + self.delay} if self.delay else {}
        if self.stream is not None and reply.error is None:
            scripted = reply.stream or ScriptedStream()
            breaks = {"breaks_after": self.stream.breaks_after, "error": self.stream.error}
            changes["stream"] = scripted.model_copy(update=breaks)
        return reply.model_copy(update=changes) if changes else reply


class Weather:
    """Draws the fate of every call, and remembers the storms and outages that last."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._asked: Counter[str] = Counter()
        self._storms: dict[str, tuple[float, bool]] = {}  # by model: until when, and whether it says so
        self._outages: dict[str, tuple[float, ScriptedError]] = {}

    def clear_up(self) -> None:
        """Begin anew."""
        self._asked.clear()
        self._storms.clear()
        self._outages.clear()

    def fate(self, asked: Asked, *, now: float, timeout: float, streamed: bool) -> Fate:
        """Return what befalls a call that begins at `now`, seconds on any one clock."""
        chaos, question = self._chaos, _digest(asked)
        self._asked[question] += 1
        draws = Random(f"{chaos.seed} {question} {self._asked[question]}")  # noqa: S311 - chance, no secret
        # All are drawn at every call: one chance that is changed leaves the others' luck as it was.
        storm, outage, slow, truncated, cut = (draws.random() for _ in range(5))
        weather = self._lasting(asked.model, now)
        if weather is None:
            if storm < chaos.rate_limits:
                self._storms[asked.model] = (now + draws.uniform(*STORM), draws.random() < TELLING)
            if outage < chaos.outages:
                self._outages[asked.model] = (now + draws.uniform(*OUTAGE), _outage(draws))
            weather = self._lasting(asked.model, now)
        if weather is not None:
            return Fate(instead=Reply(error=weather))
        delay = draws.uniform(*SLOWNESS) * timeout if slow < chaos.slow else 0.0
        broken = "incomplete_response" if truncated < chaos.truncated else None
        if streamed and broken is None and cut < chaos.cut_streams:
            broken = "unavailable"
        if broken is None:
            return Fate(delay=delay)
        words = "chaos: truncated" if broken == "incomplete_response" else "chaos: the connection was cut"
        error = ScriptedError.model_validate({"kind": broken, "message": words})
        if not streamed:
            return Fate(instead=Reply(error=error, latency=delay))
        return Fate(delay=delay, stream=ScriptedStream(breaks_after=draws.randint(0, LATEST_BREAK), error=error))

    def _lasting(self, model: str, now: float) -> ScriptedError | None:
        """Return what a storm or an outage answers; those that are over are forgotten."""
        until, error = self._outages.get(model, (now, None))
        if until > now:
            return error
        self._outages.pop(model, None)
        until, says_so = self._storms.get(model, (now, False))
        if until > now:
            hint = until - now if says_so else None
            return ScriptedError(status=429, retry_after=hint, message="chaos: a storm of 429s")
        self._storms.pop(model, None)
        return None


def _outage(draws: Random) -> ScriptedError:
    kinds: list[dict[str, Any]] = [{"status": 503}, {"status": 529}, {"kind": "unavailable"}]
    return ScriptedError.model_validate({**draws.choice(kinds), "message": "chaos: an outage"})


def _digest(asked: Asked) -> str:
    question = asked.request.model_dump(include=ASKED)
    text = json.dumps([asked.model, question], sort_keys=True, default=repr)
    return blake2b(text.encode(), digest_size=8).hexdigest()
