"""The sections of the configuration and their defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from llm_gateway.config.addresses import NO_ADDRESS, is_address
from llm_gateway.errors import UnknownModelError
from llm_gateway.models import Numeric
from llm_gateway.price_lanes import LaneChoice
from llm_gateway.sentences import nearest, shown

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Numeric]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Numeric]
PositiveInt = Annotated[int, Field(ge=1), Numeric]
Name = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Field(strict=True)]

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # of TOML; others stand in quotes


class Settings(BaseModel):
    """A frozen section of the configuration; an unknown key is an error."""

    # Built when first used: `import llm_gateway` is somebody's start-up time.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


Charge = Literal["admission_max", "actual"]
"""What a provider counts: the larger of input and `max_tokens` when a call begins, or what it used in the end."""

Quota = PositiveInt

BURST_SECONDS = 0.75
SAFETY_OF_REQUESTS, SAFETY_OF_TOKENS = 0.99, 0.97


class LimitSettings(Settings):
    """The provider's limits; those left out are learned from its answers."""

    rpm: Quota | None = None
    """Requests a minute."""
    tpm: Quota | None = None
    """Tokens a minute, input and output together."""
    itpm: Quota | None = None
    """Input tokens a minute."""
    otpm: Quota | None = None
    """Output tokens a minute."""
    rpd: Quota | None = None
    """Requests a day. They flow back continuously, as OpenAI's do: the whole day's can be used at once."""
    charge: Charge | None = None
    """How the provider charges: "admission_max" (the larger of the input and `max_tokens` when a call begins, never
    trued up) or "actual" (what was used). Default: the first for OpenAI and Azure, the second for all others."""
    burst_seconds: Positive | None = None
    """How much of its rate a limit that stood idle lets through at once. Default: 0.75. Providers may enforce 60 a
    minute as 1 a second; a little less leaves room for calls that arrive later than they were sent."""
    safety: Annotated[float, Field(gt=0, le=1), Numeric] | None = None
    """The share of each limit that is used. Default: 0.99 of requests, which are counted exactly. Of tokens, which are
    estimated, 0.97; 0.99 where 20 calls or more share a second's worth, so that their estimates even out, and no other
    process has a part in the limit."""

    @property
    def burst(self) -> float:
        """`burst_seconds`, or its default."""
        return BURST_SECONDS if self.burst_seconds is None else self.burst_seconds

    def share(self, *, tokens: bool) -> float:
        """Return the share of a limit that is used: one of tokens, or one of requests."""
        if self.safety is not None:
            return self.safety
        return SAFETY_OF_TOKENS if tokens else SAFETY_OF_REQUESTS

    @property
    def is_empty(self) -> bool:
        """Whether no limit is given at all."""
        return not (self.rpm or self.tpm or self.itpm or self.otpm or self.rpd)


Transport = Literal["lean", "sdk"]
"""How calls travel: over HTTP of our own under LangChain's chat model, or through the provider's SDK."""


def _redis_address(url: SecretStr | None) -> SecretStr | None:
    if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("no address of a Redis; write it as redis://host:port/0, rediss://… or unix://path")
    return url


class SharedSettings(Settings):
    """Limits that many processes and hosts share."""

    redis_url: SecretStr | None = None
    """Of the Redis or Valkey that counts for all of them: redis://, rediss:// or unix://. Default: every process
    counts for itself."""
    prefix: Name = "llm-gateway"
    """What the names of the keys in it begin with; gateways with another one share nothing with these."""
    lease_seconds: Annotated[float, Field(ge=1), Numeric] = 10.0
    """After so many seconds the slots of a process that died are free."""
    processes: PositiveInt = 1
    """Among how many processes the limits are divided while the store has never been reached. Later it is as many as
    were seen last."""

    @field_validator("redis_url")
    @classmethod
    def _has_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        return _redis_address(url)


class ProviderSettings(Settings):
    """One account at one host."""

    kind: Name | None = None
    """Which API it speaks: "openai", "anthropic", "ollama", "llamacpp" or a provider of LangChain's `init_chat_model`.
    Default: the provider's own name."""
    base_url: str | None = None
    """Default: the provider's environment variable, then its public address."""
    api_key: SecretStr | None = None
    """Default: the provider's environment variable."""
    timeout: Positive = 60.0
    """Seconds without a byte from the provider before a call counts as failed."""
    total_timeout: Positive | None = None
    """Seconds that one call may take in all, a stream to its end. Default: no bound. For the lean transport alone."""
    transport: Transport | None = None
    """How calls travel: "lean", over HTTP of our own under LangChain's chat model, at a fraction of the CPU, or "sdk",
    through the provider's package. Default: "lean" for openai, anthropic and ollama, "sdk" for all others."""
    limits: LimitSettings | None = None
    """Of the account, shared by all its models. Default: none."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        if url == "":
            raise ValueError("empty; leave it out for the default")
        # Ollama also takes host:port; who needs the scheme is known once the kind is.
        if url is not None and not is_address(url if "//" in url else f"http://{url}"):
            raise ValueError(NO_ADDRESS)
        return url


class PriceSettings(Settings):
    """US dollars for a million tokens."""

    input: NonNegative
    output: NonNegative
    cache_read: NonNegative | None = None
    """Default: as `input`."""
    cache_write: NonNegative | None = None
    """Default: as `input`."""


FallbackKind = Literal[
    "default",
    "rate_limit",
    "timeout",
    "unavailable",
    "overloaded",
    "incomplete_response",
    "context_length",
    "authentication",
    "model_not_found",
    "quota_exhausted",
    "rejected",
    "invalid_answer",
]
"""The kinds of error that can have fallbacks of their own; "default" stands for all but "rejected"."""


StructuredOutput = Literal["native", "tool", "prompt"]


class EmbeddingSettings(Settings):
    """How many texts may go into one provider call."""

    max_inputs: PositiveInt | None = None
    """Texts. Default: 2048 for OpenAI and Azure, 512 for Ollama, 96 for all others."""
    max_tokens: PositiveInt | None = None
    """Tokens of all texts together. Default: 300000 for OpenAI and Azure, 100000 for Ollama, 16000 for all others."""


class FurtherDeployment(Settings):
    """Another deployment of the same model; what it leaves out is as in the model's own section."""

    provider: Name | None = None
    """A section of `[providers]`, a built-in provider, or one of LangChain's `init_chat_model`."""
    model: Name | None = None
    """The provider's own name of the model."""
    weight: Positive | None = None
    max_concurrency: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    context: PositiveInt | None = None
    structured_output: StructuredOutput | None = None
    price: PriceSettings | None = None
    limits: LimitSettings | Literal[False] | None = None
    options: dict[str, Any] | None = None


class ModelSettings(Settings):
    """One name that requests can ask for, and what answers it."""

    provider: Name
    """A section of `[providers]`, a built-in provider, or one of LangChain's `init_chat_model`."""
    model: Name
    """The provider's own name of the model; for llamacpp the path of a GGUF file, or "smollm2-135m"."""
    max_concurrency: PositiveInt = 64
    """Provider calls at the same time."""
    max_tokens: PositiveInt | None = None
    """For requests that set none. Default: the provider's; 4096 for Anthropic, which would else reserve its maximum."""
    context: PositiveInt | None = None
    """Tokens of context. Default: as the model's profile knows; for llamacpp 4096 in each slot."""
    structured_output: StructuredOutput | None = None
    """How an answer in a `response_format` is asked for: the provider enforces the schema, the model must call a tool
    that takes it, or the prompt tells it. Default: as the kind of provider and the model's profile know."""
    price: PriceSettings | None = None
    """Default: as genai-prices knows."""
    limits: LimitSettings | Literal[False] | None = None
    """Of this model. Default: unknown at a provider's public address, so begin slowly, keep what its answers tell, or
    else learn a rate; at a `base_url` of one's own, and for local models, only what answers tell. Empty: begin slowly
    there too. False: never begin slowly."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for the constructor of LangChain's chat model, as they are."""
    weight: Positive = 1.0
    """Of this deployment, where `deployments` names further ones: calls spread in proportion."""
    deployments: list[FurtherDeployment] = Field(default_factory=list)
    """Further deployments that answer for this name, each under its own limits."""
    fallbacks: list[Name] | dict[FallbackKind, list[Name]] = Field(default_factory=list)
    """Models to ask in turn when this one cannot answer: its attempts are used up, its breaker is open, its key is
    refused, or the prompt is too long for it. As a table, by kind of error; an empty list means none for that kind."""
    cache: bool = True
    """Keep this model's answers, where there is a section `[cache]`. A request's own `cache` goes first."""

    embedding: EmbeddingSettings | Flag = False
    """True for a model that makes vectors of texts, for `embed`; a table also says how much goes into one call."""

    lane: LaneChoice = "standard"
    """The price lane of requests that name none: "standard", "flex" (later, at half the price), "batch" (within
    a day, at half the price), or "auto": for LOW requests the cheapest one that the model has and that is early
    enough, "standard" for all others."""

    def all_deployments(self) -> list[ModelSettings]:
        """Return the settings of each deployment, this section's own first."""
        further = [
            self.model_copy(update={name: value for name, value in each if value is not None})
            for each in self.deployments
        ]
        return [self, *further]

    def fallbacks_after(self, kind: str) -> list[str]:
        """Return the models to ask after an error of `kind`."""
        if isinstance(self.fallbacks, list):
            return [] if kind == "rejected" else self.fallbacks
        named = {str(each): models for each, models in self.fallbacks.items()}
        return named.get(kind, [] if kind == "rejected" else named.get("default", []))


class BudgetSettings(Settings):
    """US dollars that may be spent. What was spent and what calls under way may cost at worst never exceed them."""

    total: Positive | None = None
    """By the whole gateway."""
    models: dict[Name, Positive] = Field(default_factory=dict)
    """By a model, under the name that requests ask for."""
    each_agent: Positive | None = None
    """By every agent that `agents` does not name; requests without an agent share one."""
    agents: dict[Name, Positive] = Field(default_factory=dict)
    """By an agent."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no budget at all."""
        return self.total is None and self.each_agent is None and not self.models and not self.agents


class CacheSettings(Settings):
    """Answers that are kept and given to identical requests later. With this section, even an empty one, it is on."""

    store: Literal["sqlite", "redis", "memory"] | None = None
    """Where they are kept: in a file, in a Redis or Valkey, or in this process alone. Default: "redis" where an address
    is given, here or in `[limits]`, and no `path` is; else "sqlite"."""
    path: Path = Path("llm-gateway-cache.sqlite")
    """The file, relative to the working directory. Several processes may share it."""
    redis_url: SecretStr | None = None
    """Default: that of `[limits]`, whose `prefix` holds here, too."""
    ttl: Positive | None = None
    """Seconds after which an answer is too old. Default: never."""
    max_entries: PositiveInt = 100_000
    """Answers beyond so many push out those that were used least recently."""
    max_bytes: Annotated[int, Field(ge=4096), Numeric] = 1024 * 1024 * 1024
    """So do answers beyond so many bytes in all."""
    tenant: str = ""
    """Gateways with another tenant share nothing with this one, also in the same store."""
    each_agent: bool = False
    """Agents share nothing with each other: each is a tenant of its own."""
    any_temperature: bool = False
    """Also keep answers to requests with a temperature above 0."""

    @field_validator("redis_url")
    @classmethod
    def _has_scheme(cls, url: SecretStr | None) -> SecretStr | None:
        return _redis_address(url)


class BatchingSettings(Settings):
    """How waiting requests become batches."""

    max_batch_size: PositiveInt = 32
    max_wait_ms: NonNegative = 0.0
    """How long the first request of a batch may wait for company, in milliseconds."""
    max_queue_size: PositiveInt = 10_000
    """Requests of one priority that may wait for one model; one more gets `QueueFullError`, or waits itself if it is
    part of a `batch()`."""


class ProviderBatchSettings(Settings):
    """How requests in the price lane "batch" gather and become batches of their provider. Times in seconds."""

    max_wait: NonNegative = 60.0
    """How long the first request may wait for company. The more go together, the fewer batches there are to watch."""
    max_requests: PositiveInt = 10_000
    """A batch of so many requests leaves at once. The provider's own limits, of requests and of bytes, hold beside."""
    max_waiting: PositiveInt = 100_000
    """Requests of one model that may gather or be in batches under way; one more gets `QueueFullError`, or waits itself
    if it is part of a `batch()`."""
    enqueued_tokens: PositiveInt | None = None
    """Input tokens, by estimate, that all batches of one model under way may have together. Default: no limit until
    OpenAI refuses a batch for it, and then what that tells."""
    poll: Positive = 15.0
    """Between the making of a batch and the first look at it; each further pause is half as long again."""
    max_poll: Positive = 300.0
    """The longest pause between two looks."""


class RetrySettings(Settings):
    """When a failed call is repeated. Durations in seconds."""

    max_attempts: PositiveInt = 5
    """Provider calls for one request in total, the first one included."""
    base_delay: NonNegative = 0.5
    max_delay: NonNegative = 20.0
    """Longest pause that the gateway chooses itself. A provider's hint may be longer, up to `longest_hint`."""
    longest_hint: NonNegative = 300.0
    """A provider that asks for a longer pause than this gets no retry."""
    max_throttles: Annotated[int, Field(ge=0), Numeric] = 30
    """Calls of one request that may be refused by a rate limit; they count as no attempt."""
    quota: NonNegative = 500.0
    """Permits for retries of one deployment; a transient failure takes 14, an overload 5, a success gives 1 back."""


class LogSettings(Settings):
    """The journal: JSON lines, one file a day and process."""

    dir: Path | Literal[False] = Path("04_logs/gateway")
    """Relative to the working directory; false turns the journal off."""
    max_file_bytes: Annotated[int, Field(ge=4096), Numeric] = 64 * 1024 * 1024
    """A file that would grow beyond this is continued in another."""
    keep_days: PositiveInt = 30
    keep_bytes: Annotated[int, Field(ge=4096), Numeric] = 1024 * 1024 * 1024
    """All journal files of the folder together; the oldest go first."""
    text: bool = False
    """Also write the text of prompts and answers."""

    @field_validator("dir", mode="before")
    @classmethod
    def _not_true(cls, value: object) -> object:
        if value is True:
            raise ValueError("true is not a folder; leave it out for 04_logs/gateway, or give a path or false")
        return value


class GatewayConfig(Settings):
    """The whole configuration, with every default filled in."""

    providers: dict[Name, ProviderSettings] = Field(default_factory=dict)
    models: dict[Name, ModelSettings] = Field(default_factory=dict)
    batching: BatchingSettings = BatchingSettings()
    provider_batches: ProviderBatchSettings = ProviderBatchSettings()
    retry: RetrySettings = RetrySettings()
    limits: SharedSettings = SharedSettings()
    logs: LogSettings = LogSettings()
    budgets: BudgetSettings = BudgetSettings()
    cache: CacheSettings | None = None
    """Default: no answer is kept."""
    coalesce: bool = False
    """Let identical requests at temperature 0 that are under way at the same time share one call; streams never do."""
    freeze: bool = False
    """Once a model's libraries are loaded, let Python's garbage collector look rarely, and only at what was made since:
    `gc.collect()`, `gc.freeze()` and higher thresholds. Its longest pauses, tens of milliseconds, go away, and a
    request costs less; what forms cycles by then and is dropped later stays in memory."""
    drain_timeout: NonNegative = 30.0
    """Seconds that shutdown waits for what was accepted before it cancels the rest."""
    seed: Annotated[int, Numeric] | None = None
    """Seed of the retries' jitter; None draws one."""

    def model(self, name: str) -> ModelSettings:
        """Return the settings of `name`; UnknownModelError names the nearest one."""
        try:
            return self.models[name]
        except KeyError:
            guess = nearest(name, self.models)
            known = ", ".join(sorted(self.models))
            section = name if BARE_KEY.fullmatch(name) else json.dumps(name)
            remedy = (
                f"did you mean '{guess}'? Configured are"
                if guess
                else f"add a section [models.{section}] or use one of"
            )
            reason = f"{shown(name)} is not configured; {remedy} {known}."
            raise UnknownModelError(reason, field="model", record="LLMRequest") from None
