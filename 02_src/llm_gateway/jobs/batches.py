"""The batches of one model of a job: made, watched, and their results recorded.

Whatever step the process dies at, the next one finds it in the state. The intent is stored before a batch is made, and
rows of a batch belong to it until their results, or its end, are stored. So nothing is asked twice, but for what
nobody can know: then the ledger says "in doubt".
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from llm_gateway.clients.base import Completion
from llm_gateway.clients.batches import (
    BatchAnswer,
    BatchLine,
    CreationFailedError,
    Sought,
    Standing,
    custom_id,
    number_of,
)
from llm_gateway.errors import BudgetExceededError, ConfigurationError, GatewayError, ModelNotFoundError, ProviderError
from llm_gateway.jobs.asking import failure_of
from llm_gateway.jobs.batch_book import BatchBook, StoredBatch
from llm_gateway.jobs.batch_money import BatchMoney
from llm_gateway.jobs.batch_news import BatchNews
from llm_gateway.jobs.encoding import request_of
from llm_gateway.jobs.records import Calls, Lease, Verdict
from llm_gateway.models import LLMResponse, Receipt
from llm_gateway.price_lanes import PRICE_SHARES

T = TypeVar("T")
Persisted = Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]
Judge = Callable[[Lease, LLMResponse, Calls], Verdict]

ROWS_AT_ONCE = 256  # read or recorded in one transaction
LARGEST = 64 * 1024 * 1024  # bytes of a batch, which stands in memory while it is sent; providers take more
CHARACTERS_A_TOKEN = 4.0
SEARCHES = 2  # how often a batch that may have been made is looked for, a pause apart
UNSENT, IN_DOUBT = Calls(unsent=1), Calls()
QUEUE_IS_FULL = "token_limit_exceeded"  # OpenAI: the batches under way have more input tokens than the account may
# What a batch is asked to end with, and what an operator may see of it.
NOT_MADE, LOST, REFUSED, UNKNOWN = "not made", "lost", "refused", "unknown"


@dataclass(slots=True, kw_only=True)
class Draft:
    """A batch that is being filled."""

    intent: str = field(default_factory=lambda: os.urandom(8).hex())
    numbers: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True, kw_only=True)
class Batches:
    """Makes and watches the provider batches of one model.

    `passed` is told each step before and after which the process may die; tests die there.
    """

    model: str
    line: BatchLine
    book: BatchBook
    persisted: Persisted  # type: ignore[type-arg]  # of whatever its action returns
    judge: Judge
    most_turns: int  # after so many leases a row goes in the standard lane
    recorded: Callable[[], None] = lambda: None
    passed: Callable[[str], None] = lambda _step: None
    others: Callable[[str], set[str]] = lambda _intent: (
        set()
    )  # ids of batches that are known not to be an intent's; blocks
    broke: BudgetExceededError | None = None  # why no batch is made any more: what is under way is still watched
    token_room: float | None = None  # input tokens of all batches under way, as a provider's refusal told
    _searches: dict[int, int] = field(default_factory=dict)
    _open: list[StoredBatch] = field(default_factory=list)
    _money: BatchMoney = field(init=False)
    _news: BatchNews = field(init=False)

    def __post_init__(self) -> None:
        """Hold nothing yet."""
        self._money = BatchMoney(self.line.purse)
        self._news = BatchNews(self.model, self.line)

    @property
    def under_way(self) -> int:
        """How many batches are open."""
        return len(self._open)

    async def begin(self) -> bool:
        """Take up the open batches of earlier runs; tell whether the model had any batch before."""
        await self._reread()
        for batch in self._open if self.line.purse is not None else ():
            await self._hold_again(batch)
        return any(each.model == self.model and each.batch_id for each in await self.book.all_batches())

    async def _hold_again(self, batch: StoredBatch) -> None:
        """Hold the worst case of the rows that an earlier run sent in a batch and that have no result yet."""
        after = 0
        while rows := await self._kept(lambda: self.book.leases(batch, None, ROWS_AT_ONCE, after=after)):  # noqa: B023 - it is awaited here
            for row in rows:
                after = row.number
                self._money.take(batch.intent, row.number, request_of(row.request))

    # --- making -----------------------------------------------------------------------------------------------

    async def make(self) -> int:
        """Make one batch of the first rows that are pending; return how many rows are no longer pending.

        Raises ConfigurationError where the provider refuses it as a whole; its rows are pending then.
        """
        draft, unfit = await self._fill()
        if unfit:
            await self._kept(lambda: self.book.refuse(unfit))
            self.recorded()
        if not draft.numbers:
            return len(unfit)
        self.passed("before_intent")
        intent = await self._kept(
            lambda: self.book.intend(
                draft.intent, draft.numbers, model=self.model, deployment=self.line.label, size=draft.size
            )
        )
        self.passed("intended")
        try:
            batch_id = await self.line.client.create(draft.intent, draft.lines)
        except CreationFailedError as failed:
            if failed.doubtful:
                self._open.append(intent)
                return len(unfit) + len(draft.numbers)
            await self._end(intent, REFUSED, str(failed.error), UNSENT)
            if failed.error.retryable:
                return len(unfit)
            raise self._refusal(str(failed.error)) from failed.error
        self.passed("made")
        await self._kept(lambda: self.book.note(intent, batch_id=batch_id, state="created"))
        self.passed("noted")
        self._told(intent, "made", batch_id=batch_id)
        await self._reread()
        return len(unfit) + len(draft.numbers)

    async def _fill(self) -> tuple[Draft, list[tuple[Lease, Verdict]]]:
        """Write the lines of the next batch, and tell which rows can go in none."""
        draft, after = Draft(), 0
        unfit: list[tuple[Lease, Verdict]] = []
        limits = self.line.client.limits
        largest = min(LARGEST, limits.size)
        room = None if self.token_room is None else self.token_room * CHARACTERS_A_TOKEN - self._size_under_way()
        while True:
            rows = await self._kept(
                lambda after=after: self.book.fresh(self.model, after, ROWS_AT_ONCE, self.most_turns)  # type: ignore[misc]  # a default is no parameter
            )
            for row in rows:
                after = row.number
                try:
                    request = request_of(row.request)
                    text = self.line.client.line(custom_id(draft.intent, row.number), request)
                    if text is None:
                        raise self._refusal("its requests need an API that batches do not have")
                    size = draft.size + len(text) + 1
                    is_full = (
                        len(draft.lines) >= limits.requests or size > largest or (room is not None and size > room)
                    )
                    if is_full and (draft.lines or self._open):
                        return draft, unfit
                    if not self._money.reserve(draft.intent, row.number, request):
                        return draft, unfit
                except BudgetExceededError as error:
                    self.broke = error
                    return draft, unfit
                except ConfigurationError:
                    self._money.close(draft.intent, in_doubt=False)
                    raise
                except GatewayError as error:
                    unfit.append((row, Verdict(calls=UNSENT, failure=failure_of(error))))
                    continue
                draft.numbers.append(row.number)
                draft.lines.append(text)
                draft.size = size
            if not rows:
                return draft, unfit

    def _size_under_way(self) -> int:
        return sum(each.size for each in self._open)

    # --- watching ---------------------------------------------------------------------------------------------

    async def look(self, *, cancel: bool = False) -> int:
        """Look at every open batch once, record what is over, and return how many rows are pending again.

        With `cancel`, ask the provider to end those under way: their answers so far are taken all the same. What it
        cannot tell for the moment is left for the next look. Raises ConfigurationError where no look will help.
        """
        back = 0
        for batch in list(self._open):
            try:
                back += await self._look_at(batch, cancel=cancel)
            except ModelNotFoundError as error:  # a batch that the provider does not know: its results are gone
                back += await self._end(batch, LOST, str(error), IN_DOUBT)
            except ProviderError as error:
                if not error.retryable:
                    raise self._refusal(str(error)) from error
        await self._reread()
        return back

    async def _look_at(self, batch: StoredBatch, *, cancel: bool) -> int:
        batch_id = batch.batch_id
        if batch_id is None:
            return await self._search(batch, cancel=cancel)
        standing = await self.line.client.look(batch_id)
        await self._kept(lambda: self.book.note(batch, state=standing.state, served=standing.served))
        if (standing.state, standing.served) != (batch.state, batch.served) and not standing.is_over:
            self._told(batch, standing.state, served=standing.served)
        if not standing.is_over:
            if cancel and not standing.is_ending:
                self.passed("before_cancel")
                await self.line.client.cancel(batch_id)
                self.passed("cancelled")
            return 0
        self.passed("over")
        if standing.code is not None:
            return await self._failed(batch, standing)
        back = await self._take_results(batch, batch_id)
        rest = IN_DOUBT if standing.is_whole else UNSENT
        return back + await self._end(batch, standing.state, standing.reason, rest)

    async def _search(self, batch: StoredBatch, *, cancel: bool) -> int:
        """Look for a batch that may have been made; give its rows back if it was not, or there is no time to see."""
        known = {each.batch_id for each in await self.book.all_batches() if each.batch_id}
        known |= await asyncio.to_thread(self.others, batch.intent)
        sought = Sought(intent=batch.intent, requests=batch.requests, since=batch.since, known=known)
        found = await self.line.client.find(sought)
        if found.batch_id is not None:
            await self._kept(lambda: self.book.note(batch, batch_id=found.batch_id or "", state="adopted"))
            self.passed("adopted")
            self._told(batch, "made", batch_id=found.batch_id)
        elif not found.may_come:
            searches = self._searches[batch.id] = self._searches.get(batch.id, 0) + 1
            if searches >= SEARCHES:
                return await self._end(batch, NOT_MADE, "", UNSENT)
        elif cancel:
            return await self._end(batch, UNKNOWN, "whether it was made was not known in time", IN_DOUBT)
        return 0

    async def _failed(self, batch: StoredBatch, standing: Standing) -> int:
        """Give the rows back of a batch that was refused as a whole, after the provider had looked at it."""
        back = await self._end(batch, standing.state, standing.reason, UNSENT)
        if standing.code != QUEUE_IS_FULL:
            raise self._refusal(standing.reason or standing.code or "no reason given")
        others = self._size_under_way() - batch.size
        self.token_room = max(others, batch.size / 2) / CHARACTERS_A_TOKEN
        return back

    async def _take_results(self, batch: StoredBatch, batch_id: str) -> int:
        """Record the results of a batch as they come; return how many rows are pending again."""
        back = 0
        gathered: dict[int, BatchAnswer] = {}
        results = self.line.client.results(batch_id)
        try:
            async for answer in results:
                number = number_of(answer.custom_id, batch.intent)
                if number is not None:
                    gathered[number] = answer
                if len(gathered) >= ROWS_AT_ONCE:
                    back += await self._record_answers(batch, gathered)
                    gathered = {}
        finally:
            await results.aclose()
        return back + await self._record_answers(batch, gathered)

    async def _record_answers(self, batch: StoredBatch, gathered: dict[int, BatchAnswer]) -> int:
        if not gathered:
            return 0
        # A row that is no longer in the batch has its result already.
        leases = await self._kept(lambda: self.book.leases(batch, list(gathered), ROWS_AT_ONCE))
        answers = {lease.number: self._answer(batch, lease, gathered[lease.number].outcome) for lease in leases}
        ended = [(lease, self._verdict(lease, answers[lease.number])) for lease in leases]
        await self._record(ended)
        for lease, verdict in ended:
            cost = 0.0 if not verdict.calls.answered else None if verdict.calls.unpriced else verdict.calls.cost_usd
            self._money.settle(batch.intent, lease.number, cost)
            self._news.ended(batch, lease, answers[lease.number])
        self.passed("recorded")
        return sum(verdict.answer is None and verdict.failure is None for _, verdict in ended)

    def _answer(
        self, batch: StoredBatch, lease: Lease, outcome: Completion | ProviderError | None
    ) -> LLMResponse | ProviderError | None:
        if not isinstance(outcome, Completion):
            return outcome
        if outcome.tool_calls:
            outcome = self.line.client.finished(request_of(lease.request), outcome)
        return self._response(batch, lease, outcome)

    def _verdict(self, lease: Lease, answer: LLMResponse | ProviderError | None) -> Verdict:
        if answer is None:
            return Verdict(calls=UNSENT)
        if isinstance(answer, ProviderError):
            answer.attempts = lease.turn
            return Verdict(calls=Calls(refused=1), failure=None if answer.retryable else failure_of(answer))
        receipt = answer.receipt
        usage = receipt.usage if receipt else None
        cost = receipt.cost_usd if receipt else None
        calls = Calls(
            answered=1,
            input_tokens=usage.input_tokens if usage else 0,
            output_tokens=usage.output_tokens if usage else 0,
            cost_usd=cost or 0.0,
            unpriced=int(cost is None),
        )
        return self.judge(lease, answer, calls)

    def _response(self, batch: StoredBatch, lease: Lease, completion: Completion) -> LLMResponse:
        usage = completion.usage
        cost = None if usage is None else self.line.price.cost(usage)
        return LLMResponse(
            request_id=lease.key,
            content=completion.content,
            tool_calls=list(completion.tool_calls) or None,
            model=self.model,
            tokens_used=None if usage is None else usage.total_tokens,
            finish_reason=completion.finish_reason,
            receipt=Receipt(
                queue_wait=0.0,
                attempts=1,
                provider_time=batch.age,
                deployment=batch.deployment,
                usage=usage,
                cost_usd=None if cost is None else cost * PRICE_SHARES["batch"],
                price_lane="batch",
            ),
        )

    # --- parts ------------------------------------------------------------------------------------------------

    async def _record(self, ended: Sequence[tuple[Lease, Verdict]]) -> None:
        await self._kept(lambda: self.book.record(ended))
        self.recorded()

    async def _end(self, batch: StoredBatch, state: str, reason: str, rest: Calls) -> int:
        """Close a batch; return how many rows are pending again."""
        self.passed("before_close")
        back = await self._kept(lambda: self.book.close(batch, state, reason, rest))
        self._money.close(batch.intent, in_doubt=rest is IN_DOUBT)
        self.passed("closed")
        self._told(batch, state, waiting=0)
        await self._reread()
        return back

    async def _reread(self) -> None:
        self._open = await self.book.open_batches(self.model)

    async def _kept(self, action: Callable[[], Awaitable[T]]) -> T:
        """Write, and wait while the disk is full."""
        kept: T = await self.persisted(action)
        return kept

    def _told(
        self,
        batch: StoredBatch,
        state: str,
        *,
        waiting: int | None = None,
        served: int | None = None,
        batch_id: str | None = None,
    ) -> None:
        """Tell the gateway's observers how a batch stands; what is not given is as it was."""
        self._news.changed(
            batch,
            state=state,
            waiting=batch.requests if waiting is None else waiting,
            served=batch.served if served is None else served,
            batch_id=batch_id or batch.batch_id,
        )

    def _refusal(self, words: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.line.label} does not take the batch of model '{self.model}': {words.rstrip('.')}; mend that, "
            "or ask in another lane. No row is lost."
        )
