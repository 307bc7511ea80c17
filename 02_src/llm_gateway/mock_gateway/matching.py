"""Which rule fits a call, and for a call that none fits, which one came nearest."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any

from llm_gateway.mock_gateway.responses import Match, Rule
from llm_gateway.models import EmbeddingRequest, LLMMessage, LLMRequest
from llm_gateway.queue import asked_at_first

COMPARED = 500  # characters of a text that are compared, since likeness takes quadratic time
SHOWN = 80  # characters of a text that a sentence shows


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One provider call, as rules see it."""

    request: LLMRequest
    model: str  # the configuration's name
    attempt: int

    @cached_property
    def text(self) -> str:
        """The last message of role "user"; empty if there is none. See `last_text`."""
        return last_text(self.request)

    @cached_property
    def system(self) -> str:
        """All messages of role "system"."""
        return "\n".join(text_of(each) for each in self.request.messages if each.role == "system")

    @cached_property
    def after_tool(self) -> str | None:
        """The tool whose result is the last message; None if the last message is no result."""
        answered = asked_at_first(self.request.messages)[-1].tool_call_id
        calls = [call for message in self.request.messages for call in message.tool_calls or ()]
        return next((call.name for call in reversed(calls) if call.id == answered), None)


def text_of(message: LLMMessage) -> str:
    """Return the text of a message; blocks of other kinds have none."""
    if isinstance(message.content, str):
        return message.content
    return "".join(str(block.get("text", "")) for block in message.content if block.get("type") == "text")


def last_text(request: LLMRequest) -> str:
    """Return the last message of role "user", of texts to embed all of them; empty if there is none.

    What the gateway says of an answer that does not fit its format is left out: such a call asks the same again.
    """
    if isinstance(request, EmbeddingRequest):
        return "\n".join(request.texts)
    messages = asked_at_first(request.messages)
    return next((text_of(each) for each in reversed(messages) if each.role == "user"), "")


def shown(text: str) -> str:
    """Quote a text for a sentence, on one line and cut if it is long."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= SHOWN else f'"{line[: SHOWN - 1]}…"'


# --- what each key of a match asks for --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one key of `Match` asks of a call."""

    key: str
    given: Callable[[Asked], Any]
    wants: Callable[[Any], str]  # in words
    fits: Callable[[Any, Any], bool] = operator.eq  # wanted, given
    likeness: Callable[[Any, Any], float] = lambda wanted, given: float(wanted == given)  # 0 to 1


def _part(wanted: str, given: str) -> bool:
    return wanted in given


def _likeness(wanted: str, given: str) -> float:
    return SequenceMatcher(None, wanted[:COMPARED], given[:COMPARED], autojunk=False).ratio()


def _overlap(wanted: str, given: str) -> float:
    """Return the share of `wanted` that its longest piece found in `given` makes up."""
    if wanted in given:
        return 1.0
    matcher = SequenceMatcher(None, wanted[:COMPARED], given[:COMPARED], autojunk=False)
    return matcher.find_longest_match().size / len(wanted)


def _found(wanted: re.Pattern[str], given: str) -> bool:
    return wanted.search(given) is not None


CHECKS = (
    Check(key="model", given=lambda asked: asked.model, wants=lambda name: f"model '{name}'"),
    Check(key="request_id", given=lambda asked: asked.request.request_id, wants=lambda name: f"request id '{name}'"),
    Check(key="agent", given=lambda asked: asked.request.agent, wants=lambda name: f"agent '{name}'"),
    Check(key="attempt", given=lambda asked: asked.attempt, wants=lambda number: f"attempt {number}"),
    Check(
        key="after_tool", given=lambda asked: asked.after_tool, wants=lambda name: f"the result of '{name}' at the end"
    ),
    Check(key="text", given=lambda asked: asked.text, wants=lambda text: f"the text {shown(text)}", likeness=_likeness),
    Check(
        key="contains",
        given=lambda asked: asked.text,
        wants=lambda part: f"text that contains {shown(part)}",
        fits=_part,
        likeness=_overlap,
    ),
    Check(
        key="regex",
        given=lambda asked: asked.text,
        wants=lambda regex: f"text that matches {regex.pattern!r}",
        fits=_found,
        likeness=lambda regex, text: float(_found(regex, text)),
    ),
    Check(
        key="system",
        given=lambda asked: asked.system,
        wants=lambda part: f"a system message that contains {shown(part)}",
        fits=_part,
        likeness=_overlap,
    ),
)


def _asked_for(match: Match) -> Iterator[tuple[Check, Any]]:
    for check in CHECKS:
        wanted = getattr(match, check.key)
        if wanted is not None:
            yield check, wanted


def fits(match: Match, asked: Asked) -> bool:
    """Whether a call fits every key that `match` has."""
    return all(check.fits(wanted, check.given(asked)) for check, wanted in _asked_for(match))


# --- for a call that no rule fits -------------------------------------------------------------------------------


def nearest_rule(rules: Sequence[Rule], asked: Asked) -> int | None:
    """Return the place of the rule that came nearest, the first of equals; None if there are no rules."""
    return max(range(len(rules)), key=lambda place: _nearness(rules[place].match, asked), default=None)


def _nearness(match: Match, asked: Asked) -> float:
    likenesses = [check.likeness(wanted, check.given(asked)) for check, wanted in _asked_for(match)]
    return sum(likenesses) / len(likenesses)


def what_is_missing(match: Match, asked: Asked) -> str:
    """Return in words what `match` asks for and the call has not."""
    return " and ".join(
        check.wants(wanted) for check, wanted in _asked_for(match) if not check.fits(wanted, check.given(asked))
    )
