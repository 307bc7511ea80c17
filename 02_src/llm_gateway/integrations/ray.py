"""Ray Data: a callable for `Dataset.map_batches` that asks a gateway. It imports no Ray, and works without it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import finalize

import orjson

from llm_gateway.config import GatewayConfig, read_config
from llm_gateway.errors import ConfigurationError, GatewayError, InvalidRequestError, UnknownModelError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.loops import Doorway
from llm_gateway.jobs.tables import PromptTemplate
from llm_gateway.models import LLMMessage, LLMRequest, LLMResponse, RequestPriority

ADDED = ("answer", "error", "cost", "tokens")
Columns = dict[str, Sequence[Any]]
Outcome = LLMResponse | BaseException


class AskGateway:
    """Answers the rows of a batch: `dataset.map_batches(AskGateway, fn_constructor_kwargs={...}, compute=...)`.

    `config` is that of an `LLMGateway`, as a dict or the path of a TOML file that every node can read. Each actor
    builds its own gateway, which lives in one event loop until the actor ends; with `[limits] redis_url` in the
    configuration all of them share one quota.

    Exactly one of these says what a row asks: `prompt`, a template with the names of columns in braces; `messages`, the
    column of a conversation; `request`, the column of a whole `LLMRequest`, which may leave out its model. A
    conversation and a request are lists and dicts, or JSON. `system` goes before the prompts of a template.
    `temperature`, `max_tokens` and `priority` are those of rows whose request does not name its own.

    A batch comes back as what it was, a dict of columns, a `pyarrow.Table` or a `pandas.DataFrame`, with four columns
    more. Of these none is ever null, so that all blocks of a dataset have one schema: `answer` (empty where the row
    failed), `error` (empty where it did not, else the kind and a sentence), `cost` (US dollars, NaN where the price is
    unknown, 0 where the row failed) and `tokens` (input and output). `prefix` goes before their names.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | PathLike[str] | None = None,
        *,
        model: str | None = None,
        prompt: str | None = None,
        messages: str | None = None,
        request: str | None = None,
        system: str | None = None,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        priority: RequestPriority = RequestPriority.LOW,
        prefix: str = "",
    ) -> None:
        """Raise ConfigurationError for a configuration or options that are at fault."""
        if sum(each is not None for each in (prompt, messages, request)) != 1:
            raise ConfigurationError("AskGateway needs exactly one of 'prompt', 'messages' and 'request'.")
        if model is None and request is None:
            raise ConfigurationError("AskGateway needs a 'model': only a column of requests can name one for each row.")
        if system is not None and prompt is None:
            raise ConfigurationError("'system' goes with 'prompt'; a conversation has a system message of its own.")
        self._template = None if prompt is None else PromptTemplate(prompt)
        self._column = messages or request
        self._whole = request is not None
        self._system = [] if system is None else [LLMMessage(role="system", content=system)]
        self._fields = {
            "model": model,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "priority": RequestPriority(priority),
        }
        self._names = tuple(f"{prefix}{name}" for name in ADDED)
        self._gateway = LLMGateway(_loaded(config))
        if model is not None:
            _check_model(self._gateway.config, model)
        self._doorway = Doorway(self._gateway)
        self._end = finalize(self, _shut, self._gateway, self._doorway)

    def close(self) -> None:
        """Drain what is under way and write the journal; safe to call twice. Happens also when the actor ends."""
        self._end()

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the columns of its answers.

        Raises ConfigurationError for a column that is not there or is there already, and for what is wrong with the
        configuration, as a missing key, where no row of the batch was answered. All else that fails is a row's `error`.
        """
        columns = _columns_of(batch)
        self._check(list(columns))
        count = len(next(iter(columns.values()), ()))
        plain = {name: _plain(columns[name]) for name in self._needed(columns)}
        asked = [self._request(place, plain) for place in range(count)]
        requests = [each for each in asked if isinstance(each, LLMRequest)]
        answers: list[Outcome] = []
        if requests:
            answers = self._doorway.ask_and_wait(lambda: self._gateway.batch(requests, return_exceptions=True))
        outcomes = iter(answers)
        ended = [next(outcomes) if isinstance(each, LLMRequest) else each for each in asked]
        broken = next((each for each in ended if isinstance(each, ConfigurationError)), None)
        if broken is not None and not any(isinstance(each, LLMResponse) for each in ended):
            raise broken
        return _with_columns(batch, columns, dict(zip(self._names, _told(ended), strict=True)))

    # --- parts ------------------------------------------------------------------------------------------------

    def _check(self, columns: list[str]) -> None:
        if self._template is not None:
            self._template.check(columns, "the batch")
        elif self._column not in columns:
            known = ", ".join(columns) or "none"
            raise ConfigurationError(f"The batch has no column '{self._column}'; it has {known}.")
        twice = [name for name in self._names if name in columns]
        if twice:
            raise ConfigurationError(f"The batch has a column '{twice[0]}' already; give AskGateway a prefix='llm_'.")

    def _needed(self, columns: Columns) -> list[str]:
        return list(columns) if self._column is None else [self._column]

    def _request(self, place: int, columns: Columns) -> LLMRequest | InvalidRequestError:
        """Return what a row asks, or why it cannot be asked."""
        row = {name: values[place] for name, values in columns.items()}
        try:
            if self._template is not None:
                question = LLMMessage(role="user", content=self._template.render(row))
                return LLMRequest(**self._fields, messages=[*self._system, question])
            told = _parsed(row[str(self._column)], str(self._column), dict if self._whole else list)
            return LLMRequest(**self._fields | (told if self._whole else {"messages": told}))
        except InvalidRequestError as error:
            return error


def _loaded(config: Mapping[str, Any] | str | PathLike[str] | None) -> dict[str, Any] | GatewayConfig:
    if isinstance(config, str | PathLike):
        return read_config(Path(config))
    return dict(config or {})


def _check_model(config: GatewayConfig, model: str) -> None:
    try:
        config.model(str(getattr(model, "value", model)))
    except UnknownModelError as error:
        raise ConfigurationError(f"AskGateway: {error.reason}") from None


def _shut(gateway: LLMGateway, doorway: Doorway) -> None:
    home = gateway.loop
    if home is None:
        return  # it was never asked
    if asyncio._get_running_loop() is home:  # noqa: SLF001 - None where no loop runs
        # The garbage collector found it, in the one thread that must not wait for its end.
        asyncio.run_coroutine_threadsafe(gateway.shutdown(), home)
        return
    # At the very end of a process there are no worker threads; the journal then writes its last lines by itself.
    with suppress(GatewayError, RuntimeError):
        doorway.ask_and_wait(gateway.shutdown)


def _kind_of(batch: Any) -> str:
    return type(batch).__module__.partition(".")[0]


def _columns_of(batch: Any) -> Columns:
    """Return the columns of a batch. Raises ConfigurationError for what is none."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if _kind_of(batch) == "pyarrow":
        return dict(zip(batch.column_names, batch.columns, strict=True))
    if _kind_of(batch) == "pandas":
        return {str(name): batch[name] for name in batch.columns}
    raise ConfigurationError(
        f"AskGateway takes a dict of columns, a pyarrow.Table or a pandas.DataFrame, not a {type(batch).__name__}."
    )


def _with_columns(batch: Any, columns: Columns, added: dict[str, list[Any]]) -> Any:
    """Return the batch and the new columns, as what it was."""
    if _kind_of(batch) == "pyarrow":
        import pyarrow as pa

        types = (pa.string(), pa.string(), pa.float64(), pa.int64())
        for (name, values), kind in zip(added.items(), types, strict=True):
            batch = batch.append_column(name, pa.array(values, kind))
        return batch
    if _kind_of(batch) == "pandas":
        return batch.assign(**added)
    return {**columns, **added}


def _told(ended: list[Outcome]) -> tuple[list[str], list[str], list[float], list[int]]:
    answers, errors, costs, tokens = [], [], [], []
    for each in ended:
        answered = isinstance(each, LLMResponse)
        answers.append(each.content if isinstance(each, LLMResponse) else "")
        errors.append("" if answered else _sentence(each))
        costs.append(_cost(each) if isinstance(each, LLMResponse) else 0.0)
        tokens.append((each.tokens_used or 0) if isinstance(each, LLMResponse) else 0)
    return answers, errors, costs, tokens


def _cost(response: LLMResponse) -> float:
    cost = response.receipt.cost_usd if response.receipt else None
    return float("nan") if cost is None else cost


def _sentence(error: Outcome) -> str:
    if isinstance(error, GatewayError):
        return f"{error.kind}: {error}"
    return f"{type(error).__name__}: {error}"


def _plain(values: Any) -> Any:
    """Return a value in Python's own types, whatever library it comes from."""
    for way in ("to_pylist", "tolist"):  # of pyarrow, and of numpy and pandas
        if hasattr(values, way):
            return _plain(getattr(values, way)())
    if isinstance(values, dict):
        # Arrow gives every dict of a column the keys of all; those that a row does not have are null.
        return {name: _plain(value) for name, value in values.items() if value is not None}
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _parsed(value: Any, column: str, kind: type) -> Any:
    """Return what a cell holds, which may be JSON. Raises InvalidRequestError."""
    if isinstance(value, str | bytes):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise InvalidRequestError(f"not JSON: {error.msg} at character {error.colno}.", field=column) from None
    if not isinstance(value, kind):
        wanted = "a JSON object" if kind is dict else "a list of messages"
        raise InvalidRequestError(f"expected {wanted}, found {type(value).__name__}.", field=column)
    return value
