"""`llm-gateway simulate`: how a trace would fare, before anything is deployed."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from llm_gateway.cli.console import FAILED, OK, count, duration, stderr
from llm_gateway.cli.lines import Input
from llm_gateway.cli.rows import Malformed, RowReader
from llm_gateway.cli.settings import Loaded, load
from llm_gateway.config import LimitSettings
from llm_gateway.errors import ConfigurationError, UnknownModelError
from llm_gateway.journal.files import journal_files
from llm_gateway.models import ModelProvider
from llm_gateway.simulation.page import render_html
from llm_gateway.simulation.reading import TraceReader
from llm_gateway.simulation.running import checked_limits, simulate
from llm_gateway.simulation.terminal import render_terminal
from llm_gateway.simulation.trace import TracedRequest
from llm_gateway.simulation.troubles import Trouble
from llm_gateway.simulation.work import Latency, LogNormal
from llm_gateway.tokens import estimate_input

MOST_COMPLAINTS = 10  # malformed lines that are told one by one
TAIL = 5.0  # times the median, the 99th percentile of a latency for which only the median is given
LATENCY_FORM = "give seconds as 0.8, or the median and the 99th percentile as 0.8,4"
NUMBER = r"\d+(?:\.\d+)?"
TROUBLE = re.compile(rf"(?P<kind>\w+):(?P<start>{NUMBER})-(?P<end>{NUMBER})(?::(?P<share>{NUMBER}))?")


def simulate_files(
    sources: Sequence[str],
    *,
    config: Path | None,
    model: str | None,
    limits: str | None,
    latency: str | None,
    speed: float | None,
    load_factor: float,
    troubles: Sequence[str],
    seed: int,
    html: Path | None,
    as_json: bool,
) -> int:
    """Print what a simulation of the traces in `sources` found out, and return the exit code. Raises GatewayError."""
    loaded = load(config)
    if model is not None:
        _check_model(loaded, model)
    told = None if limits is None else parse_limits(limits)
    how_long = parse_latency(latency, speed)
    wrong = [parse_trouble(each) for each in troubles]
    reader = TraceReader(model=model, default_model=loaded.only_model, check=loaded.config.model)
    for source in sources:
        for path in _files(source):
            asyncio.run(_read(path, reader, RowReader(loaded, model=model)))
    _complain(reader)
    trace = reader.trace()
    if not trace:
        raise ConfigurationError(f"There is no request in {', '.join(sources)}; give a trace or a journal.")
    began = time.monotonic()
    result = simulate(trace, loaded.config, limits=told, latency=how_long, troubles=wrong, load=load_factor, seed=seed)
    took = time.monotonic() - began
    if html is not None:
        _write(html, render_html(result))
    if as_json:
        sys.stdout.write(orjson.dumps(result.as_dict(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        Console().print(render_terminal(result))
        if html is not None:
            Console().print(Text(f"\nPage: {html}"), soft_wrap=True)
    stderr().print(f"simulated {duration(result.duration)} in {duration(took)}")
    return FAILED if reader.malformed else OK


def parse_limits(text: str) -> LimitSettings:
    """Read "rpm=500,tpm=200_000". Raises ConfigurationError."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise ConfigurationError(f"--limits: '{part}' is no limit; write them as rpm=500,tpm=200000.")
        fields[key] = value.replace("_", "")
    try:
        return checked_limits(fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"--limits: {str(error).removeprefix('limits.')}") from None


def parse_latency(latency: str | None, speed: float | None) -> Latency | None:
    """Return the latency that the options describe, None if they do not. Raises ConfigurationError."""
    if latency is None:
        return None if speed is None else Latency(speed=speed)
    median, comma, p99 = latency.partition(",")
    try:
        first = LogNormal(float(median), float(p99) if comma else TAIL * float(median))
    except ValueError:
        raise ConfigurationError(f"--latency: '{latency}' is no latency; {LATENCY_FORM}.") from None
    return Latency(first_token=first) if speed is None else Latency(first_token=first, speed=speed)


def parse_trouble(text: str) -> Trouble:
    """Read "overloaded:600-900:0.5". Raises ConfigurationError."""
    found = TROUBLE.fullmatch(text)
    if found is None:
        raise ConfigurationError(
            f"--trouble: '{text}' is no trouble; write KIND:START-END or KIND:START-END:SHARE, as "
            "overloaded:600-900:0.5."
        )
    kind: Any = found["kind"]  # a Trouble checks that itself
    try:
        return Trouble(
            kind=kind, start=float(found["start"]), end=float(found["end"]), share=float(found["share"] or 1.0)
        )
    except ValueError as error:
        raise ConfigurationError(f"--trouble: {error}.") from None


def _check_model(loaded: Loaded, model: str) -> None:
    try:
        loaded.config.model(model)
    except UnknownModelError as error:
        raise ConfigurationError(f"--model: {error.reason}") from None


def _files(source: str) -> list[str]:
    """Return the files that an argument stands for: itself, or those of the journal in a folder."""
    folder = Path(source)
    if not folder.is_dir():
        return [source]
    files = [str(file.path) for file in journal_files(folder)]
    if not files:
        raise ConfigurationError(f"There is no journal in {source}; give a trace, or a journal's file or folder.")
    return files


async def _read(path: str, reader: TraceReader, rows: RowReader) -> None:
    def row(line: int, text: bytes) -> TracedRequest:
        """Make a request of a line of `llm-gateway run`: it comes at the beginning, with all its like."""
        found = rows.read(line, text)
        if isinstance(found, Malformed):
            raise found.error
        assert found is not None  # noqa: S101 - the reader skips blank lines
        request = found.request
        return TracedRequest(
            at=0.0,
            model=request.model.value if isinstance(request.model, ModelProvider) else request.model,
            priority=request.priority,
            agent=request.agent,
            input_tokens=estimate_input(request),
            max_tokens=request.max_tokens,
            deadline=request.deadline,
        )

    source = Input(path)
    try:
        async for number, text in source.rows():
            reader.feed(source.name, number, text, other=row)
    finally:
        source.close()


def _complain(reader: TraceReader) -> None:
    console = stderr()
    for each in reader.malformed[:MOST_COMPLAINTS]:
        console.print(f"{each.source}, line {each.line}: {each.reason}", style="yellow")
    more = len(reader.malformed) - MOST_COMPLAINTS
    if more > 0:
        console.print(f"{count(more, 'more line is', 'more lines are')} malformed.", style="yellow")


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"The page {path} cannot be written: {error.strerror}.") from None
