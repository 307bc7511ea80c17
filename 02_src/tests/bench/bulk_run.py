"""Answer a file of requests in this process and print what it took, as JSON: a part of bench.bulk."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.measure import cpu_seconds, mib_now, peak_mib
from bench.own import gateway_over_nothing

KEY = "sk-bench-0000000000000000"
MODEL = "gpt-4o-mini"
CALLS = 128  # at once, for every subject
CHUNK = 1024  # requests in a list of `abatch`
SAMPLE_S = 0.5
OPEN_LIMITS = {"rpm": 6_000_000, "tpm": 6_000_000_000}  # beyond reach, and still counted


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a subject is given."""

    url: str
    source: Path  # JSON lines: request_id, model, messages
    output: Path
    rpm: int | None = None  # the limit that it is told


@dataclass(kw_only=True)
class Took:
    """One run as its process saw it. The libraries' import is not in it."""

    seconds: float
    cpu_s: float
    rows: int  # answered
    peak_mib: float
    samples: list[tuple[int, float]] = field(default_factory=list)  # rows written, MiB

    @property
    def per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU a row in microseconds."""
        return self.cpu_s / max(1, self.rows) * 1e6


class Sampler(threading.Thread):
    """Looks how large this process and its output are, until it is stopped."""

    def __init__(self, output: Path) -> None:
        super().__init__(daemon=True)
        self._output = output
        self._over = threading.Event()
        self.seen: list[tuple[int, float]] = []  # bytes, MiB

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            size = self._output.stat().st_size if self._output.exists() else 0
            self.seen.append((size, mib_now()))

    def samples(self, rows: int) -> list[tuple[int, float]]:
        """Stop; return rows instead of bytes, since all lines are alike."""
        self._over.set()
        self.join()
        size = self._output.stat().st_size if self._output.exists() else 0
        return [(round(rows * seen / size), mib) for seen, mib in self.seen] if size else []


def gateway_config(task: Task) -> dict[str, Any]:
    """Return the configuration of both ways through the gateway: everything on."""
    limits: dict[str, Any] = OPEN_LIMITS if task.rpm is None else {"rpm": task.rpm}
    return {
        "providers": {"openai": {"base_url": task.url, "api_key": KEY}},
        "models": {MODEL: {"limits": limits, "max_concurrency": CALLS}},
        "logs": {"dir": str(task.output.parent / "logs")},
    }


def durable(task: Task) -> Callable[[], None]:
    """`llm-gateway run`: the state beside the output, on the disk before an answer is handed out."""
    from llm_gateway.cli.run import Options, run_file

    config = task.output.with_suffix(".toml")
    config.write_text(toml(gateway_config(task)), encoding="utf-8")

    def run() -> None:
        code = run_file(str(task.source), str(task.output), Options(config=config))
        assert code == 0, code

    return run


def alone(task: Task) -> Callable[[], None]:
    """The same command over a client in this process that answers at once: what a million rows need of memory."""
    from llm_gateway.cli import run as command

    vars(command)["LLMGateway"] = gateway_over_nothing()
    return durable(task)


def plain(task: Task) -> Callable[[], None]:
    """The same requests through `LLMGateway.request`, each answer a line in a plain file: nothing to resume from."""
    import orjson

    from llm_gateway import LLMGateway, LLMRequest, RequestPriority
    from llm_gateway.cli import event_loop

    importlib.import_module("llm_gateway.cli.run")  # what the command has loaded before its clock starts

    def requests() -> Iterator[LLMRequest]:
        with task.source.open("rb") as lines:
            for line in lines:
                yield LLMRequest(**orjson.loads(line), priority=RequestPriority.LOW)

    async def work() -> None:
        rest = requests()
        with task.output.open("wb") as output:
            async with LLMGateway(gateway_config(task)) as gateway:

                async def caller() -> None:
                    for request in rest:
                        response = await gateway.request(request)
                        line = {"request_id": request.request_id, "status": "ok", "response": response.model_dump()}
                        output.write(orjson.dumps(line) + b"\n")

                # As many as a job keeps under way: no slot waits for a row.
                await asyncio.gather(*(caller() for _ in range(4 * CALLS)))

    return lambda: event_loop.run(work())  # on the loop of the command


def abatch(task: Task) -> Callable[[], None]:
    """ChatOpenAI.abatch in chunks, each of which is written when all of it is answered."""
    from langchain_openai import ChatOpenAI

    async def work() -> None:
        model = ChatOpenAI(model=MODEL, base_url=task.url, api_key=KEY, max_retries=2)
        with task.source.open(encoding="utf-8") as lines, task.output.open("w", encoding="utf-8") as output:
            for chunk in chunks(lines):
                rows = [json.loads(line) for line in chunk]
                asked = [[(each["role"], each["content"]) for each in row["messages"]] for row in rows]
                answers = await model.abatch(asked, {"max_concurrency": CALLS})  # type: ignore[arg-type]
                for row, answer in zip(rows, answers, strict=True):
                    output.write(json.dumps({"request_id": row["request_id"], "text": answer.text}) + "\n")

    return lambda: asyncio.run(work())


def chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(lines, CHUNK)):
        yield chunk


def curator(task: Task) -> Callable[[], None]:
    """bespokelabs-curator's LLM over its online backend, with its cache of answers in a folder of its own."""
    os.environ |= {"CURATOR_DISABLE_CACHE": "0", "TELEMETRY_ENABLED": "0", "CURATOR_VIEWER": "0"}
    os.environ |= {"HF_HOME": str(task.output.parent / "datasets"), "HF_HUB_OFFLINE": "1"}
    os.environ |= {"OPENAI_API_KEY": KEY, "CURATOR_CACHE_DIR": str(task.output.parent / "curator")}
    # It counts tokens by a table that it would load from the network; LiteLLM, which it depends on, brings that along.
    found = importlib.util.find_spec("litellm")
    if found is not None and found.origin is not None:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")
    library: Any = importlib.import_module("bespokelabs.curator")

    class Answers(library.LLM):  # type: ignore[misc]  # it lives in another environment
        def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
            messages: list[dict[str, str]] = row["messages"]
            return messages

        def parse(self, row: dict[str, Any], response: str) -> dict[str, str]:
            return {"request_id": row["request_id"], "text": response}

    params = {
        "base_url": task.url,
        "max_requests_per_minute": OPEN_LIMITS["rpm"],
        "max_tokens_per_minute": OPEN_LIMITS["tpm"],
        "max_concurrent_requests": CALLS,
    }

    def run() -> None:
        with task.source.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        answers = Answers(model_name=MODEL, backend="openai", backend_params=params)(rows)
        with task.output.open("w", encoding="utf-8") as output:
            for answer in getattr(answers, "dataset", answers):
                output.write(json.dumps(answer) + "\n")

    return run


SUBJECTS: dict[str, Callable[[Task], Callable[[], None]]] = {
    "durable": durable,
    "alone": alone,
    "plain": plain,
    "abatch": abatch,
    "curator": curator,
}


def toml(config: dict[str, Any]) -> str:
    """Write a configuration of tables, texts and numbers as TOML: in one line each, JSON's form of them is TOML's."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {value(each)}" for name, each in of.items()) + "}"
        return json.dumps(of)

    return "\n".join(f"{name} = {value(of)}" for name, of in config.items()) + "\n"


def measure(subject: str, task: Task) -> Took:
    """Open a subject and let it work through its file."""
    run = SUBJECTS[subject](task)
    sampler = Sampler(task.output)
    sampler.start()
    began, cpu = time.monotonic(), cpu_seconds()
    run()
    seconds, cpu_s = time.monotonic() - began, cpu_seconds() - cpu
    with task.output.open("rb") as lines:
        answered = sum(1 for _ in lines)
    return Took(seconds=seconds, cpu_s=cpu_s, rows=answered, peak_mib=peak_mib(), samples=sampler.samples(answered))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rpm", type=int)
    given = parser.parse_args()
    task = Task(url=given.url, source=given.source, output=given.output, rpm=given.rpm)
    print(json.dumps(asdict(measure(given.subject, task))))  # noqa: T201 - the answer to the parent


if __name__ == "__main__":
    main()
