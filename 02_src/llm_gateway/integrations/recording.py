"""Recordings for tests: real answers asked for once, kept in a file without secrets, and replayed for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from llm_gateway.clients.base import Completion
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import ConfigurationError, GatewayError, ProviderError
from llm_gateway.integrations.drift import differences, likeness
from llm_gateway.integrations.recorded_vectors import RecordedVector, VectorTape
from llm_gateway.mock_gateway.answers import ASKED
from llm_gateway.mock_gateway.matching import Asked, shown
from llm_gateway.mock_gateway.responses import Part, Reply, ScriptedStream, ScriptedToolCall
from llm_gateway.mock_gateway.scripted import KINDS, Vectors
from llm_gateway.models import EmbeddingRequest
from llm_gateway.sentences import sentence_of

ABOUT = "Answers of real models, recorded by pytest --llm-record; tests replay them. Keys are masked."


WAITED_FOR = 0.2  # of likeness: a request that has not come yet rather drifted than one that has


class UnrecordedRequestError(GatewayError):
    """The recording has no answer to this request. The message shows what differs from the nearest one that it has."""

    kind: ClassVar[str] = "unrecorded"


class RecordedAnswer(Part):
    """One request as it was sent, and what was answered."""

    deployment: str
    """What answered: provider, slash, model id."""
    request: dict[str, Any]
    """What was asked; not who asked, how urgently and under which id."""
    reply: Reply


class Recording(Part):
    """The file of a test."""

    about: str = ABOUT
    version: Literal[1] = 1
    test: str
    calls: list[RecordedAnswer] = Field(default_factory=list)
    vectors: list[RecordedVector] = Field(default_factory=list)


def load_recording(path: Path) -> Recording | None:
    """Return the recording in a file, None if there is no file. Raises ConfigurationError, in one sentence."""
    try:
        return Recording.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"The recording {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        place, reason = sentence_of(error, Recording)
        raise ConfigurationError(f"The recording {path}: {place}: {reason} Delete the file to record anew.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"The recording {path} is not JSON: {error}. Delete the file to record anew."
        ) from None


@dataclass(slots=True)
class _Kept:
    """An answer on the tape."""

    call: RecordedAnswer
    used: bool = False  # asked for, or recorded just now
    given: bool = False  # and not to be given once more


@dataclass(kw_only=True)
class Tape:
    """The recorded answers of one test: finds them, takes new ones, and knows which were not asked for.

    `mask` takes the secrets out of a text, in what is recorded and in what is looked for alike. `known` are the
    deployments that each model has now.
    """

    path: Path
    test: str
    shown_path: str
    remedy: str  # the command that records
    mask: Callable[[str], str]
    known: Mapping[str, Sequence[str]]
    vectors: VectorTape
    exists: bool = False
    missed: list[str] = field(default_factory=list)  # what was said of each request that has no answer
    _kept: list[_Kept] = field(default_factory=list)
    _served: dict[str, _Kept] = field(default_factory=dict)  # by request id, for its retries

    def load(self) -> None:
        """Read the file, if there is one."""
        recording = load_recording(self.path)
        self.exists = recording is not None
        self._kept = [_Kept(call) for call in recording.calls] if recording else []
        self.vectors.load(recording.vectors if recording else ())

    def save(self) -> None:
        """Write what was used, in an order that does not depend on who was answered first; nothing used, no file."""
        calls = sorted((each.call for each in self._kept if each.used), key=_place)
        vectors = self.vectors.used()
        if not calls and not vectors:
            self.path.unlink(missing_ok=True)
            return
        found: dict[str, Any] = {"vectors": vectors} if vectors else {}
        data = Recording(test=self.test, calls=calls, **found).model_dump(mode="json", exclude_unset=True)
        text = json.dumps({"about": ABOUT, "version": 1, **data}, indent=2, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        draft.write_text(f"{text}\n", encoding="utf-8")
        draft.replace(self.path)  # whole or not at all

    # --- replaying ------------------------------------------------------------------------------------------------

    def has(self, asked: Asked) -> bool:
        """Whether `next_reply` has an answer."""
        return self._find(asked) is not None

    def next_reply(self, asked: Asked, /) -> tuple[str, Reply]:
        """Return what was answered to this request; recorded several times, in turn. A retry gets the same again.

        But one that shows the model an answer that did not fit asks something else, and has an answer of its own.

        Raises UnrecordedRequestError.
        """
        if isinstance(asked.request, EmbeddingRequest):
            return "recorded", self._vectors_reply(asked)
        kept = self._find(asked)
        if kept is None:
            self.missed.append(self._what_is_missing(asked))
            raise UnrecordedRequestError(self.missed[-1])
        kept.used = kept.given = True
        self._served[asked.request.request_id] = kept
        return "recorded", kept.call.reply

    def vectors_of(self, request: EmbeddingRequest, model: str, /) -> Vectors:
        """Return the vectors of a call that `next_reply` has answered, and what they cost."""
        return self.vectors.vectors_of(request, model)

    def _vectors_reply(self, asked: Asked) -> Reply:
        found = self.vectors.reply(asked)
        if isinstance(found, Reply):
            return found
        if self.exists:
            self.missed.append(f"{self.shown_path} {found} If that is meant, record it: {self.remedy}")
        else:
            self.missed.append(self._what_is_missing(asked))
        raise UnrecordedRequestError(self.missed[-1])

    def rewind(self) -> None:
        """Begin every sequence anew."""
        for each in self._kept:
            each.given = False
        self._served.clear()

    @property
    def unused(self) -> list[str]:
        """What was recorded and not asked for, each in a few words."""
        return [_told(each.call.request) for each in self._kept if not each.used] + self.vectors.unused

    def _find(self, asked: Asked) -> _Kept | None:
        wanted = self._request(asked)
        served = self._served.get(asked.request.request_id)
        if asked.attempt > 1 and served is not None and served.call.request == wanted:
            return served
        return next((each for each in self._kept if not each.given and self._now(each, wanted)), None)

    def _now(self, kept: _Kept, wanted: Mapping[str, Any]) -> bool:
        model = kept.call.request.get("model", "")
        return kept.call.request == wanted and kept.call.deployment in self.known.get(model, ())

    def _request(self, asked: Asked) -> dict[str, Any]:
        masked: dict[str, Any] = _masked(plain_request(asked), self.mask)
        return masked

    def _what_is_missing(self, asked: Asked) -> str:
        wanted = self._request(asked)
        call = _told(wanted)
        if not self.exists:
            return f"There is no recording {self.shown_path} to answer {call}; ask the real model once: {self.remedy}"
        anew = f"If that is meant, record it: {self.remedy}"
        same = [each for each in self._kept if self._now(each, wanted)]
        if same:
            times = f"{len(same)} time{'s' if len(same) > 1 else ''}"
            return f"{self.shown_path} has the answer to {call} {times}, and it was asked for once more. {anew}"
        nearest = max(
            self._kept,
            key=lambda each: likeness(each.call.request, wanted) + (0.0 if each.used else WAITED_FOR),
            default=None,
        )
        if nearest is None:
            return f"{self.shown_path} has no answer at all, and {call} was asked. {anew}"
        pairs = differences(self._with_deployment(nearest, wanted), wanted)
        listed = "".join(f"\n  {pair}" for pair in pairs)
        return f"{self.shown_path} has no answer to {call}. The nearest recorded request differs:{listed}\n{anew}"

    def _with_deployment(self, kept: _Kept, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return the recorded request; where the model's deployments have changed, both tell theirs."""
        known = self.known.get(str(wanted["model"]), ())
        if kept.call.deployment in known or kept.call.request.get("model") != wanted["model"]:
            return kept.call.request
        wanted["deployment"] = " or ".join(known)
        return {**kept.call.request, "deployment": kept.call.deployment}

    # --- recording ------------------------------------------------------------------------------------------------

    def record(self, asked: Asked, deployment: str, reply: Mapping[str, Any]) -> None:
        """Keep what was answered, without secrets."""
        call = RecordedAnswer.model_validate(
            {"deployment": deployment, "request": self._request(asked), "reply": _masked(dict(reply), self.mask)}
        )
        self._kept.append(_Kept(call, used=True, given=True))


def plain_request(asked: Asked) -> dict[str, Any]:
    """Return what a call asks, as plain JSON, without what was left out."""
    fields = asked.request.model_dump(include=ASKED)
    fields["messages"] = [_given(each) for each in fields["messages"]]
    plain: dict[str, Any] = json.loads(json.dumps({"model": asked.model, **_given(fields)}, default=_fingerprint))
    return plain


def reply_of(completion: Completion, reasoning: str = "") -> dict[str, Any]:
    """Return an answer in the form of the mock's replies."""
    calls = [ScriptedToolCall(**call.model_dump()).model_dump() for call in completion.tool_calls]
    usage = completion.usage
    fields = {
        "content": completion.content,
        "tool_calls": calls or None,
        "finish_reason": completion.finish_reason,
        "stream": ScriptedStream(reasoning=reasoning).model_dump(include={"reasoning"}) if reasoning else None,
    }
    told = None if usage is None else {name: count for name, count in usage.model_dump().items() if count}
    return {**_given(fields), "usage": told}


def reply_of_error(error: ProviderError) -> dict[str, Any] | None:
    """Return a failure that would come again in the form of the mock's replies; None for one that passes."""
    if error.retryable or error.kind not in KINDS:
        return None
    return {"error": _given({"kind": error.kind, "status": error.status, "message": "as recorded"})}


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _fingerprint(value: object) -> str:
    """Stand in for the bytes of an image."""
    data = value if isinstance(value, bytes) else repr(value).encode()
    return f"{type(value).__name__} {blake2b(data, digest_size=8).hexdigest()}"


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {mask(key): _masked(each, mask) for key, each in value.items()}
    if isinstance(value, list):
        return [_masked(each, mask) for each in value]
    return value


def _place(call: RecordedAnswer) -> tuple[int, str, str]:
    """Sort conversations by their length, then by what is said in them."""
    messages = call.request.get("messages", ())
    return len(messages), json.dumps(messages, sort_keys=True), json.dumps(call.request, sort_keys=True)


def _told(request: Mapping[str, Any]) -> str:
    contents = [each.get("content", "") for each in request.get("messages", ()) if each.get("role") == "user"]
    last = contents[-1] if contents else ""
    return f"{shown(last if isinstance(last, str) else json.dumps(last))} to {request.get('model')}"


def deployments_of(config: GatewayConfig) -> dict[str, list[str]]:
    """Return what may answer for each model, as receipts call it."""
    return {
        name: [f"{each.provider}/{each.model}" for each in model.all_deployments()]
        for name, model in config.models.items()
    }
