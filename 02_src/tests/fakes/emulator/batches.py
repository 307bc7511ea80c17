"""The batch APIs of the emulator: OpenAI's files and batches, Anthropic's message batches, and what is paid.

A batch moves one state at each look at it, as `path` says; its requests are answered when it is over, as `answer` says.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from aiohttp import web

Json = dict[str, Any]
Fate = Literal["ok", "refused", "broken", "expired", "cancelled", "silent", "missing", "twice", "garbage"]
"""Of one request: answered, a 400, a 500, not served and told so (twice) or not, answered without any line, with two
lines, with an answer that is none."""

COMPLETED = ("validating", "in_progress", "finalizing", "completed")
ENDS = {"failed", "completed", "expired", "cancelled"}
ROW_STATES = {"expired": "expired", "cancelled": "canceled"}
COUNTED = {**ROW_STATES, "refused": "errored", "broken": "errored"}


@dataclass(slots=True, kw_only=True)
class Made:
    """One batch."""

    id: str
    api: str
    lines: list[Json]
    metadata: Json
    states: list[str]  # those still to come, after the present one
    code: str | None = None  # why it fails as a whole
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    looks: int = 0
    outcomes: list[tuple[str, Fate]] | None = None  # once it is over

    @property
    def state(self) -> str:
        return self.states[0]

    @property
    def is_over(self) -> bool:
        return self.state in ENDS

    def step(self) -> None:
        """Go on to the next state."""
        self.looks += 1
        if len(self.states) > 1:
            self.states.pop(0)

    def cancel(self) -> None:
        """Begin to end."""
        if not self.is_over:
            self.states = ["cancelling", "cancelled"]


class Batches:
    """A provider of batches. `fail` makes the next call of a step fail with a status, before or after it is done."""

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.path: Callable[[Made], tuple[str, ...]] = lambda _made: COMPLETED
        self.code: Callable[[Made], str | None] = lambda _made: None  # of one that fails as a whole
        self.fate: Callable[[str, str], Fate] = lambda _custom_id, _state: "ok"  # by id and last state
        self.fail: dict[str, list[tuple[int, bool]]] = {}  # step: (status, whether it is done all the same)
        self.paid: Counter[str] = Counter()  # by the text of the last message
        self.steps: list[str] = []
        self._files: dict[str, bytes] = {}

    # --- what both APIs do ------------------------------------------------------------------------------------

    def make(self, api: str, lines: list[Json], metadata: Json) -> Made:
        made = Made(id=f"batch_{len(self.made) + 1}", api=api, lines=lines, metadata=metadata, states=["new"])
        made.states = list(self.path(made))
        made.code = self.code(made)
        self.made.insert(0, made)
        return made

    def look(self, batch_id: str) -> Made | None:
        made = next((each for each in self.made if each.id == batch_id), None)
        if made is not None and not made.is_over:
            made.step()
        if made is not None and made.is_over and made.outcomes is None:
            self._settle(made)
        return made

    def _settle(self, made: Made) -> None:
        """Decide on every request, and write down what it costs."""
        served = made.state != "failed"
        told = [(str(line["custom_id"]), line) for line in made.lines]
        made.outcomes = [(name, self.fate(name, made.state)) for name, _ in told] if served else []
        for (_, fate), (_, line) in zip(made.outcomes, told, strict=False):
            if fate in {"ok", "twice", "garbage", "missing"}:
                body: Json = line.get("body") or line["params"]
                self.paid[str(body["messages"][-1]["content"])] += 1

    # --- HTTP -------------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Answer a call of a batch API; None for one of another."""
        for prefix, answer in (
            ("/v1/files", self._openai),
            ("/v1/batches", self._openai),
            ("/v1/messages/batches", self._anthropic),
        ):
            if request.path.startswith(prefix):
                return await answer(request)
        return None

    def _fault(self, step: str) -> tuple[int, bool] | None:
        self.steps.append(step)
        planned = self.fail.get(step)
        return planned.pop(0) if planned else None

    async def _openai(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")[1:]
        step = _step(request.method, parts)
        fault = self._fault(step)
        if fault is not None and not fault[1]:
            return _error(fault[0])
        answer = await self._openai_answer(request, parts, step)
        return answer if fault is None else _error(fault[0])

    async def _openai_answer(self, request: web.BaseRequest, parts: list[str], step: str) -> web.StreamResponse:
        match step:
            case "upload":
                name = f"file_{len(self._files) + 1}"
                self._files[name] = await _uploaded(request)
                return web.json_response({"id": name, "object": "file", "purpose": "batch"})
            case "content":
                await asyncio.sleep(0)
                return web.Response(body=self._files[parts[1]])
            case "create":
                asked = orjson.loads(await request.read())
                lines = [orjson.loads(line) for line in self._files[asked["input_file_id"]].splitlines() if line]
                return web.json_response(self._openai_batch(self.make("openai", lines, asked.get("metadata") or {})))
            case "list":
                rows = [self._openai_batch(each) for each in self.made if each.api == "openai"]
                return web.json_response({"object": "list", "data": rows, "has_more": False})
            case "cancel":
                made = next(each for each in self.made if each.id == parts[1])
                made.cancel()
                return web.json_response(self._openai_batch(made))
        found = self.look(parts[1])
        return web.json_response(self._openai_batch(found)) if found else _error(404)

    def _openai_batch(self, made: Made) -> Json:
        errors = None
        if made.state == "failed":
            errors = {"object": "list", "data": [{"code": made.code or "invalid", "message": f"It is {made.code}."}]}
        told: Json = {
            "id": made.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "created_at": int(made.created.timestamp()),
            "input_file_id": "file_1",
            "status": made.state,
            "metadata": made.metadata,
            "errors": errors,
            "request_counts": {"total": len(made.lines), "completed": 0, "failed": 0},
        }
        if made.outcomes:
            told |= {f"{kind}_file_id": self._openai_file(made, kind) for kind in ("output", "error")}
        return told

    def _openai_file(self, made: Made, kind: str) -> str:
        name = f"{made.id}_{kind}"
        if name not in self._files:
            rows = []
            for (told, fate), line in zip(made.outcomes or [], made.lines, strict=True):
                rows += [row for which, row in _openai_rows(told, fate, line["body"]) if which == kind]
            self._files[name] = b"\n".join([*map(orjson.dumps, reversed(rows)), b""])
        return name

    async def _anthropic(self, request: web.BaseRequest) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")[2:]
        step = _step(request.method, parts)
        fault = self._fault(step)
        if fault is not None and not fault[1]:
            return _error(fault[0])
        answer = await self._anthropic_answer(request, parts, step)
        return answer if fault is None else _error(fault[0])

    async def _anthropic_answer(self, request: web.BaseRequest, parts: list[str], step: str) -> web.StreamResponse:
        match step:
            case "create":
                asked = orjson.loads(await request.read())
                return web.json_response(_anthropic_batch(self.make("anthropic", asked["requests"], {})))
            case "list":
                looked = [self.look(each.id) for each in self.made if each.api == "anthropic"]
                rows = [_anthropic_batch(each) for each in looked if each is not None]
                return web.json_response({"data": rows, "has_more": False, "first_id": None, "last_id": None})
            case "cancel":
                made = next(each for each in self.made if each.id == parts[1])
                made.cancel()
                return web.json_response(_anthropic_batch(made))
            case "results":
                made = next(each for each in self.made if each.id == parts[1])
                rows = []
                for (told, fate), line in zip(made.outcomes or [], made.lines, strict=True):
                    rows += _anthropic_rows(told, fate, line["params"])
                return web.Response(body=b"\n".join([*map(orjson.dumps, reversed(rows)), b""]))
        found = self.look(parts[1])
        return web.json_response(_anthropic_batch(found)) if found else _error(404)


def _step(method: str, parts: list[str]) -> str:
    if parts[0] == "files":
        return "upload" if method == "POST" else "content"
    if len(parts) == 1:
        return "create" if method == "POST" else "list"
    return parts[2] if len(parts) > 2 else "look"


def _error(status: int) -> web.Response:
    body = {"type": "error", "error": {"type": "emulated_error", "message": f"A planned {status}.", "code": None}}
    return web.json_response(body, status=status)


async def _uploaded(request: web.BaseRequest) -> bytes:
    """Return the file of a form."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    form = email.message_from_bytes(head + await request.read(), policy=email.policy.HTTP)
    for part in form.iter_parts():
        content = part.get_payload(decode=True)
        if part.get_filename() and isinstance(content, bytes):
            return content
    raise ValueError("the form has no file")


def answer_to(text: str) -> str:
    """Return what a batch answers to a prompt."""
    return f"batched: {text}"


def _openai_rows(told: str, fate: Fate, body: Json) -> list[tuple[str, Json]]:
    text = answer_to(str(body["messages"][-1]["content"]))
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    answer = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }
    fine = ("output", {"custom_id": told, "response": {"status_code": 200, "body": answer}, "error": None})
    match fate:
        case "ok":
            return [fine]
        case "twice":
            return [fine, fine, ("output", {"custom_id": "of-nobody", "response": None, "error": None})]
        case "garbage":
            return [("output", {"custom_id": told, "response": {"status_code": 200, "body": {"choices": 5}}})]
        case "missing" | "silent":
            return []
        case "refused" | "broken":
            status = 400 if fate == "refused" else 500
            error = {"error": {"message": f"It is {fate}.", "type": "invalid_request_error"}}
            return [("error", {"custom_id": told, "response": {"status_code": status, "body": error}, "error": None})]
    code = f"batch_{fate}"
    return [("error", {"custom_id": told, "response": None, "error": {"code": code, "message": "It is late."}})]


def _anthropic_batch(made: Made) -> Json:
    states = {"cancelling": "canceling"} | dict.fromkeys(ENDS, "ended")
    # They add up to the size of the batch at every moment, and none has left "processing" before all is over.
    ends = [COUNTED.get(fate, "succeeded") for _, fate in made.outcomes or []]
    counts = Counter(ends if made.is_over else ["processing"] * len(made.lines))
    names = ("processing", "succeeded", "errored", "canceled", "expired")
    return {
        "id": made.id,
        "type": "message_batch",
        "processing_status": states.get(made.state, "in_progress"),
        "request_counts": {name: counts.get(name, 0) for name in names},
        "created_at": made.created.isoformat(),
        "expires_at": made.created.isoformat(),
        "ended_at": made.created.isoformat() if made.is_over else None,
        "cancel_initiated_at": made.created.isoformat() if made.state in {"cancelling", "cancelled"} else None,
        "archived_at": None,
        "results_url": f"http://unused/{made.id}" if made.is_over else None,
    }


def _anthropic_rows(told: str, fate: Fate, params: Json) -> list[Json]:
    text = answer_to(str(params["messages"][-1]["content"]))
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": params["model"],
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    fine = {"custom_id": told, "result": {"type": "succeeded", "message": message}}
    match fate:
        case "ok":
            return [fine]
        case "twice":
            return [fine, fine, fine | {"custom_id": "of-nobody"}]
        case "garbage":
            return [{"custom_id": told, "result": {"type": "succeeded", "message": {"content": 5}}}]
        case "missing":
            return []
        case "refused" | "broken":
            kind = "invalid_request_error" if fate == "refused" else "api_error"
            error = {"type": "error", "error": {"type": kind, "message": f"It is {fate}."}}
            return [{"custom_id": told, "result": {"type": "errored", "error": error}}]
    # This API tells of every request, and is never silent.
    return [{"custom_id": told, "result": {"type": ROW_STATES.get(fate, "canceled")}}]
