"""What the mock was asked: a record of every provider call, and assertions over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_gateway.events import AttemptFailed, Event, RequestDone
from llm_gateway.mock_gateway.matching import last_text, shown, text_of
from llm_gateway.models import LLMRequest

LISTED = 30  # calls that a failed assertion shows


@dataclass(slots=True, kw_only=True, eq=False)
class RecordedCall:
    """One provider call. A request that was retried has several."""

    request: LLMRequest
    model: str
    attempt: int
    at: float  # when it began, in seconds on the gateway's clock
    rule: str = ""  # what answered it: a rule's name, its place in the file, or "default"; empty if nothing did
    outcome: str | None = None  # "ok", "cancelled" or the `kind` of an error; None while it is under way
    batch_id: str | None = None  # known once there is an outcome; calls of one batch share it

    @property
    def text(self) -> str:
        """The last message of role "user"."""
        return last_text(self.request)

    @property
    def tools(self) -> list[str]:
        """The names of the tools that the request offers."""
        return [tool.name for tool in self.request.tools or ()]

    def __str__(self) -> str:
        """One line for people."""
        agent = f" by agent '{self.request.agent}'" if self.request.agent else ""
        tools = f" offering {', '.join(self.tools)}" if self.tools else ""
        rule = f" from '{self.rule}'" if self.rule else ""
        return (
            f"{shown(self.text)} to {self.model}{agent}{tools}: {self.outcome or 'under way'}{rule} "
            f"(request '{self.request.request_id}', attempt {self.attempt})"
        )


@dataclass(slots=True)
class Ledger:
    """Keeps every call, and learns from the gateway's events what became of it.

    Events name requests by id: two that are under way at the same time with one id share their attempts.
    """

    calls: list[RecordedCall] = field(default_factory=list)
    _failed: dict[str, int] = field(default_factory=dict)  # attempts of the requests that are not done
    _under_way: dict[str, RecordedCall] = field(default_factory=dict)

    def begin(self, request: LLMRequest, model: str, *, at: float) -> RecordedCall:
        """Record a call that begins."""
        attempt = self._failed.get(request.request_id, 0) + 1
        call = RecordedCall(request=request, model=model, attempt=attempt, at=at)
        self.calls.append(call)
        self._under_way[request.request_id] = call
        return call

    def clear(self) -> None:
        """Forget all calls; requests that are under way keep the number of their attempt."""
        self.calls.clear()

    def observe(self, event: Event, /) -> None:
        """Note the outcome of a call."""
        if isinstance(event, AttemptFailed):
            self._failed[event.request_id] = event.attempt
            self._end(event.request_id, event.kind, event.batch_id)
        elif isinstance(event, RequestDone):
            self._failed.pop(event.request_id, None)
            self._end(event.request_id, event.outcome, event.batch_id)

    def _end(self, request_id: str, outcome: str, batch_id: str | None) -> None:
        call = self._under_way.pop(request_id, None)
        if call is not None:
            call.outcome, call.batch_id = outcome, batch_id


class CallAssertions:
    """Assertions over recorded calls; a failure tells what was called instead.

    A call counts if it fits everything given. `containing` is a part of any of its messages, `attempt=1` leaves
    retries out, `rule` is the name of the rule that answered.
    """

    calls: list[RecordedCall]
    """Every provider call so far, in order, retries included."""

    @property
    def last_call(self) -> RecordedCall:
        """The last provider call. Raises AssertionError if there was none."""
        if not self.calls:
            raise AssertionError("Expected a call, but no model was called.")
        return self.calls[-1]

    def assert_called(
        self,
        *,
        times: int | None = None,
        model: str | None = None,
        containing: str | None = None,
        request_id: str | None = None,
        agent: str | None = None,
        attempt: int | None = None,
        rule: str | None = None,
    ) -> None:
        """Assert that there were such calls: exactly `times`, or at least one if that is left out."""
        __tracebackhide__ = True
        wanted = Wanted(model, containing, request_id, agent, attempt, rule)
        found = sum(map(wanted.fits, self.calls))
        if found == times or (times is None and found):
            return
        count = "a call" if times is None else f"{times} call{'' if times == 1 else 's'}"
        raise AssertionError(f"Expected {count}{wanted}, got {found or 'none'}.{_listing(self.calls)}")

    def assert_not_called(
        self,
        *,
        model: str | None = None,
        containing: str | None = None,
        request_id: str | None = None,
        agent: str | None = None,
        attempt: int | None = None,
        rule: str | None = None,
    ) -> None:
        """Assert that there was no such call; without arguments, no call at all."""
        __tracebackhide__ = True
        wanted = Wanted(model, containing, request_id, agent, attempt, rule)
        found = sum(map(wanted.fits, self.calls))
        if found:
            raise AssertionError(f"Expected no call{wanted}, got {found}.{_listing(self.calls)}")

    def assert_called_with_tools(self, *names: str) -> None:
        """Assert that some call offered all of these tools."""
        __tracebackhide__ = True
        if not any(set(names) <= set(call.tools) for call in self.calls):
            raise AssertionError(f"Expected a call that offers {' and '.join(names)}, got none.{_listing(self.calls)}")

    def assert_called_in_order(self, *parts: str) -> None:
        """Assert that calls contained these texts in this order; other calls may stand between them."""
        __tracebackhide__ = True
        calls = iter(self.calls)
        for place, part in enumerate(parts):
            wanted = Wanted(None, part, None, None, None, None)
            if not any(map(wanted.fits, calls)):  # takes the calls up to the one that fits
                after = f" after the one containing {shown(parts[place - 1])}" if place else ""
                raise AssertionError(f"Expected a call{wanted}{after}, got none.{_listing(self.calls)}")

    def assert_sent(self, **fields: Any) -> None:
        """Assert that the request of some call has all these fields, such as `temperature=0.2` and `max_tokens=100`.

        Raises AttributeError for a field that LLMRequest has not.
        """
        __tracebackhide__ = True
        sent = [{name: getattr(call.request, name) for name in fields} for call in self.calls]
        if fields not in sent:
            lines = [f"\n  {number}. {_fields(each)}" for number, each in enumerate(sent[:LISTED], 1)]
            told = f" These were sent:{''.join(lines)}" if sent else " No model was called."
            raise AssertionError(f"Expected a call with {_fields(fields)}, got none.{told}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an assertion asks of a call; None asks nothing."""

    model: str | None
    containing: str | None
    request_id: str | None
    agent: str | None
    attempt: int | None
    rule: str | None

    def fits(self, call: RecordedCall) -> bool:
        """Whether a call has everything asked for."""
        request = call.request
        return (
            self.model in {None, call.model}
            and self.request_id in {None, request.request_id}
            and self.agent in {None, request.agent}
            and self.attempt in {None, call.attempt}
            and self.rule in {None, call.rule}
            and (self.containing is None or any(self.containing in text_of(each) for each in request.messages))
        )

    def __str__(self) -> str:
        """Continue a sentence that ends in "a call"."""
        parts = {
            " to {}": self.model,
            " with request id '{}'": self.request_id,
            " by agent '{}'": self.agent,
            " at attempt {}": self.attempt,
            " answered by '{}'": self.rule,
            " containing {}": None if self.containing is None else shown(self.containing),
        }
        # A ModelProvider is a str, but formats as its member's name.
        return "".join(text.format(getattr(part, "value", part)) for text, part in parts.items() if part is not None)


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in fields.items())


def _listing(calls: Sequence[RecordedCall]) -> str:
    if not calls:
        return " No model was called."
    lines = [f"\n  {number}. {call}" for number, call in enumerate(calls[:LISTED], 1)]
    rest = f"\n  … and {len(calls) - LISTED} more" if len(calls) > LISTED else ""
    return f" All calls:{''.join(lines)}{rest}"
