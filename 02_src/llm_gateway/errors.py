"""The one tree of errors: what went wrong, where, and what to do next.

Everything the gateway raises on purpose is a `GatewayError`. `retryable` says whether the same request could
succeed later without a change; the gateway has already retried such a request itself before its caller sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from llm_gateway.models import LLMResponse, Receipt

UNDER_BUDGETS = "raise that budget under [budgets]"


class GatewayError(Exception):
    """Base of all errors that the gateway raises on purpose."""

    retryable: ClassVar[bool] = False
    kind: ClassVar[str] = "error"  # a short stable word for logs, statistics and result files
    response: LLMResponse | None = None  # the last answer that was paid for, if one came that did not fit its format

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by state, since the constructors take keywords."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[GatewayError], args: tuple[Any, ...], state: dict[str, Any]) -> GatewayError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequestError(GatewayError, ValueError):
    """The request is malformed; nothing was sent. The message names the field, the value and the remedy."""

    kind = "invalid_request"

    def __init__(self, reason: str, *, field: str | None = None, record: str | None = None) -> None:
        where = ".".join(part for part in (record, field) if part)
        super().__init__(f"{where}: {reason}" if where else reason)
        self.field = field  # as in `messages[0].role`
        self.reason = reason


class UnknownModelError(InvalidRequestError):
    """The request names a model that the configuration does not have."""

    kind = "unknown_model"


class RequestTooLargeError(InvalidRequestError):
    """The request alone costs more than a limit ever lets through, so that waiting is in vain; nothing was sent."""

    kind = "request_too_large"

    def __init__(self, owner: str, *, cost: float, limit: float, what: str, period: str, key: str) -> None:
        super().__init__(
            f"The request alone would use about {cost:,.0f} {what}, and {owner} may use {limit:,.0f} a {period} "
            f"(limits.{key}); shorten it or lower max_tokens, or raise limits.{key} if the provider allows more."
        )
        self.cost = cost  # as it was estimated
        self.limit = limit
        self.key = key  # of the limit in the configuration


class ConfigurationError(GatewayError, ValueError):
    """The configuration is malformed or incomplete. The message names the key, the value and the remedy."""

    kind = "configuration"


class MissingApiKeyError(ConfigurationError):
    """The provider needs a key and none was configured; the message names the environment variable."""

    kind = "missing_api_key"


class MissingDependencyError(ConfigurationError):
    """An optional package is not installed; the message is the command that installs it."""

    kind = "missing_dependency"


class QueueFullError(GatewayError):
    """The lane of this model holds as many waiting requests as it may."""

    retryable = True
    kind = "queue_full"

    def __init__(self, model: str, *, depth: int, limit: int, retry_after: float | None = None) -> None:
        when = "later" if retry_after is None else f"in about {retry_after:.1f} s"
        super().__init__(
            f"The queue of model '{model}' is full: {depth} of {limit} requests wait. "
            f"Try again {when}, or use batch(), which waits for room."
        )
        self.depth = depth
        self.limit = limit
        self.retry_after = retry_after  # seconds, None while nothing has been answered yet


class GatewayClosedError(GatewayError):
    """Submitted, or still waiting, when shutdown began."""

    kind = "closed"

    def __init__(self, message: str = "The gateway is shut down; build a new LLMGateway to go on.") -> None:
        super().__init__(message)


class DeadlineExceededError(GatewayError):
    """The request's own deadline passed before its answer came. `waited_for` says in which state it was."""

    kind = "deadline"

    def __init__(self, deadline: float, *, waited_for: str) -> None:
        super().__init__(f"No answer within the deadline of {deadline:g} s; the request was {waited_for}.")
        self.deadline = deadline  # seconds from submission
        self.waited_for = waited_for


class BudgetExceededError(GatewayError):
    """The call could cost more than is left of a budget; it was not made. Amounts in US dollars."""

    kind = "budget"

    def __init__(
        self, owner: str, *, limit: float, spent: float, left: float, cost: float, remedy: str = UNDER_BUDGETS
    ) -> None:
        super().__init__(
            f"The request may cost up to ${cost:.6f}, and of the budget of {owner}, ${limit:g}, ${left:.6f} is left; "
            f"lower max_tokens, or {remedy}."
        )
        self.owner = owner
        self.limit = limit
        self.spent = spent
        self.left = left  # beside what calls under way may still cost
        self.cost = cost  # of this request, at worst


class BatchError(GatewayError):
    """Some requests of a batch failed. `outcomes` holds a response or an error for each, in request order."""

    kind = "batch"

    def __init__(self, outcomes: Sequence[LLMResponse | BaseException]) -> None:
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        first = f"; the first with {type(failed[0]).__name__}: {failed[0]}" if failed else "."
        super().__init__(
            f"{len(failed)} of {len(outcomes)} requests failed{first} "
            "Every outcome, the answers included, is in `.outcomes`."
        )
        self.outcomes = list(outcomes)

    @property
    def errors(self) -> list[BaseException]:
        """The failures alone, in request order."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, BaseException)]

    @property
    def responses(self) -> list[LLMResponse]:
        """The answers alone, in request order."""
        return [outcome for outcome in self.outcomes if not isinstance(outcome, BaseException)]


class EmbeddingError(GatewayError):
    """Some texts of one `embed` got no vector. `vectors` holds those that came, None in the places of the others."""

    kind = "embedding"

    def __init__(
        self,
        errors: Mapping[int, BaseException],
        *,
        vectors: Sequence[list[float] | None],
        receipt: Receipt,
    ) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(vectors)} texts failed; the first, texts[{first}], with "
            f"{type(errors[first]).__name__}: {errors[first]} "
            "The other vectors are in `.vectors`, all errors in `.errors`."
        )
        self.errors = dict(errors)  # by the place of the text
        self.vectors = list(vectors)
        self.receipt = receipt  # of the calls that brought the vectors


class ProviderError(GatewayError):
    """A provider refused, failed or could not be reached. Attributes tell which one, and what it said."""

    kind = "provider"
    attempts: int = 1  # provider calls made for this request, all of them
    headers: Mapping[str, str] = MappingProxyType({})  # of the HTTP answer, as far as they tell of limits

    def __init__(
        self,
        message: str,
        *,
        provider: str,
        model: str,
        request_id: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
        summary: str | None = None,
    ) -> None:
        super().__init__(message)
        self.summary = summary or type(self).__name__  # the message without the provider's words, fit for a log
        self.provider = provider
        self.model = model  # the provider's own name of the model
        self.request_id = request_id
        self.status = status  # HTTP status, None where there was no HTTP answer
        self.retry_after = retry_after  # seconds, as the provider asked; None if it did not
        if retryable is not None:
            # The provider's own word (`x-should-retry`) overrides the class.
            self.retryable = retryable  # type: ignore[misc]


class RateLimitError(ProviderError):
    """The provider's rate limit was hit (429); it goes away by itself."""

    retryable = True
    kind = "rate_limit"


class ProviderTimeoutError(ProviderError):
    """No answer, or no next byte of it, within the provider's timeout."""

    retryable = True
    kind = "timeout"


class ProviderUnavailableError(ProviderError):
    """The provider is unreachable, overloaded or failing (5xx, 529, a broken connection)."""

    retryable = True
    kind = "unavailable"


class ProviderOverloadedError(ProviderUnavailableError):
    """The provider says that it is overloaded (529, 503 with that reason); a longer pause helps."""

    kind = "overloaded"


class IncompleteResponseError(ProviderUnavailableError):
    """The answer broke off or could not be read: cut body, no finish reason, no JSON."""

    kind = "incomplete_response"


class RequestRejectedError(ProviderError):
    """The prompt or a parameter is at fault; the same request would fail again."""

    kind = "rejected"


class ContextLengthError(RequestRejectedError):
    """The prompt, or prompt and `max_tokens` together, do not fit the model's context."""

    kind = "context_length"


class AuthenticationError(ProviderError):
    """The provider does not accept the key (401), or the key may not do this (403)."""

    kind = "authentication"


class ModelNotFoundError(ProviderError):
    """The provider has no model of this name (404), or nothing at that base_url."""

    kind = "model_not_found"


class QuotaExhaustedError(ProviderError):
    """The account has no credit left or its spend cap is reached; waiting does not help."""

    kind = "quota_exhausted"


class StreamInterruptedError(GatewayError):
    """A streamed answer broke off after its first piece, too late to ask again. `partial` is the text that came."""

    kind = "stream_interrupted"

    def __init__(self, cause: ProviderError, *, partial: str) -> None:
        how_much = f"The answer broke off after {len(partial):,} characters, which are in `.partial`"
        super().__init__(f"{how_much}: {cause}")
        self.cause = cause
        self.partial = partial
        self.request_id = cause.request_id
        self.summary = f"The answer broke off after {len(partial):,} characters: {cause.summary}"
        self.retryable = cause.retryable  # type: ignore[misc]  # asked again as a whole, it may be answered


class InvalidAnswerError(GatewayError):
    """The model answered, but not as `response_format` or the job's schema asks. The message says what is wrong where.

    `response` is the last answer, with what all attempts cost in its receipt; None from a job, whose file has both.
    """

    kind = "invalid_answer"


class JobError(GatewayError):
    """A bulk job cannot begin or go on. The message names the file and the remedy."""

    kind = "job"


class JobChangedError(JobError):
    """The input or what decides on its answers is not what it was when the job began; nothing was sent."""

    kind = "job_changed"


class JobStoreBusyError(JobError):
    """The job's state cannot be written for the moment: its disk is full, or another process holds it."""

    retryable = True
    kind = "job_store_busy"
