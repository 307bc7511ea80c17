"""The traffic of a simulation: when which requests come, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Annotated

from pydantic import BeforeValidator, Field

from llm_gateway.models import LLMMessage, LLMRequest, ModelProvider, Numeric, Record, RequestPriority
from llm_gateway.simulation.work import Latency, RandomWork, Work

PRIORITIES = {priority.name.lower(): priority for priority in RequestPriority}
CHARACTERS_A_TOKEN = 4
PATTERN = "aaaaaaaaaaa."  # of the length and the look of three tokens, by every rule of thumb
DELIMITERS = 7  # tokens that a message of one turn adds to its text
FINENESS = 6  # bits of a prompt's size: prompts of nearly one size share a text, so that long ones take no memory

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False), Numeric]
Tokens = Annotated[int, Field(ge=0), Numeric]


def _by_name(value: object) -> object:
    return PRIORITIES.get(value.lower(), value) if isinstance(value, str) else value


class TracedRequest(Record):
    """One request of a trace. What is left out is drawn from the requests of the trace that have it."""

    at: Seconds
    """When it comes, in seconds from the beginning."""
    model: ModelProvider | str
    """A name from the configuration."""
    priority: Annotated[RequestPriority, BeforeValidator(_by_name), Numeric] = RequestPriority.NORMAL
    """"high", "normal" or "low"; or 1, 2, 3."""
    agent: str | None = None
    """Who asks."""
    input_tokens: Tokens | None = None
    """Tokens of the prompt."""
    output_tokens: Tokens | None = None
    """Tokens of the answer."""
    max_tokens: Annotated[int, Field(ge=1), Numeric] | None = None
    """The longest answer that the request allows."""
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False), Numeric] | None = None
    """Seconds after which nobody waits for it any more."""
    latency: Seconds | None = None
    """Seconds that the provider takes for it."""

    @property
    def model_name(self) -> str:
        """The name of the model as a plain string."""
        return self.model.value if isinstance(self.model, ModelProvider) else self.model

    def to_request(self, request_id: str, work: Work) -> LLMRequest:
        """Return the request as the gateway gets it, with a prompt of about as many tokens as `work` says."""
        return LLMRequest(
            model=self.model,
            messages=prompt_of(work.input_tokens),
            request_id=request_id,
            priority=self.priority,
            agent=self.agent,
            max_tokens=self.max_tokens,
            deadline=self.deadline,
        )


def prompt_of(tokens: int) -> list[LLMMessage]:
    """Return messages of about `tokens` tokens, within 2 %."""
    grain = 1 << max(0, tokens.bit_length() - FINENESS)
    return [_prompt(round(tokens / grain) * grain)]


@lru_cache(maxsize=1024)
def _prompt(tokens: int) -> LLMMessage:
    length = max(0, tokens - DELIMITERS) * CHARACTERS_A_TOKEN
    text = PATTERN * (length // len(PATTERN)) + PATTERN[: length % len(PATTERN)]
    return LLMMessage(role="user", content=text)


@dataclass(slots=True)
class _Known:
    """The sizes that a trace states."""

    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def works_of(trace: Sequence[TracedRequest], latency: Latency | None, seed: int) -> list[Work]:
    """Return the work of each request; what the trace leaves out is drawn, the same for the same seed.

    A size is drawn from those that the trace states for the model, else as `RandomWork` does. `latency`, where given,
    holds for every request, whatever the trace says.
    """
    rng = Random(seed)  # noqa: S311 - a simulation's chance is no secret
    known = _known(trace)
    nothing, random = _Known(), RandomWork()
    works = []
    for traced in trace:
        sizes = known.get(traced.model_name, nothing)
        given = traced.input_tokens, traced.output_tokens
        # Each is drawn whether it is needed or not, so that a stated one changes nothing for the next request.
        draw, drawn = rng.random(), random.draw(rng)
        took = (latency or Latency()).draw(_chosen(given[1], sizes.outputs, draw, drawn.output_tokens), rng)
        works.append(
            Work(
                input_tokens=_chosen(given[0], sizes.inputs, draw, drawn.input_tokens),
                output_tokens=_chosen(given[1], sizes.outputs, draw, drawn.output_tokens),
                seconds=took if latency is not None or traced.latency is None else traced.latency,
            )
        )
    return works


def _known(trace: Iterable[TracedRequest]) -> dict[str, _Known]:
    known: dict[str, _Known] = {}
    for traced in trace:
        sizes = known.setdefault(traced.model_name, _Known())
        if traced.input_tokens is not None:
            sizes.inputs.append(traced.input_tokens)
        if traced.output_tokens is not None:
            sizes.outputs.append(traced.output_tokens)
    return known


def _chosen(given: int | None, known: Sequence[int], draw: float, drawn: int) -> int:
    if given is not None:
        return given
    return known[int(draw * len(known))] if known else drawn
