"""RecordedGateway: the gateway for tests whose answers are real ones, asked for once."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_gateway.clients.base import ChatClient, ClientFactory, Completion, Deployment
from llm_gateway.clock import Clock
from llm_gateway.config import GatewayConfig, SharedSettings, endpoint_of, load_config
from llm_gateway.errors import ProviderError
from llm_gateway.gateway import LLMGateway
from llm_gateway.integrations.recorded_vectors import VectorTape, sizes_of
from llm_gateway.integrations.recording import Tape, deployments_of, reply_of, reply_of_error
from llm_gateway.mock_gateway import Chaos, MockLLMGateway
from llm_gateway.mock_gateway.calls import Ledger, RecordedCall
from llm_gateway.mock_gateway.matching import Asked
from llm_gateway.mock_gateway.scripted import ScriptedClient, ScriptedClients
from llm_gateway.models import EmbeddingRequest, LLMRequest, ReasoningDelta, StreamDelta, TextDelta

MASK = "[key]"
SHORTEST_KEY = 6  # characters; a shorter "key" is a placeholder, and may well be a word
KEY_LIKE = re.compile(
    r"\b(?:(?:sk|pk|rk|gsk|xai|lsv2|xox[abp])[-_]|ghp_|github_pat_|hf_|AKIA|AIza)[\w.-]{8,}"  # keys as they are issued
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # a JSON web token
    r"|(?<=://)[^\s/@'\"]+(?=@)"  # the credentials in an address
    r"|(?i:(?<=bearer )[\w.~+/-]{8,})"
)


class RecordedGateway(MockLLMGateway):
    """LLMGateway that replays the answers on a tape, or with `record` asks the real models for those it has not.

    Replaying needs no key and no network, and nothing waits: limits, pauses and latencies are jumped over, and limits
    shared through Redis are left out. Recording is the real gateway, with its keys, its limits and its waits.
    The calls are recorded for assertions either way.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | GatewayConfig | None = None,
        *,
        path: Path,
        test: str,
        shown_path: str,
        remedy: str,
        record: bool = False,
        chaos: Chaos | Mapping[str, Any] | None = None,
    ) -> None:
        """Take the file of the recording, what to call the test and the file, and the command that records.

        Raises ConfigurationError for a malformed configuration or recording.
        """
        loaded = config if isinstance(config, GatewayConfig) else load_config(config or {})
        offline = loaded if record else loaded.model_copy(update={"limits": SharedSettings()})
        super().__init__(offline, skip_waits=not record, chaos=None if record else chaos)
        self._careful = record
        self._records = record
        self.tape = Tape(
            path=path,
            test=test,
            shown_path=shown_path,
            remedy=remedy,
            mask=(mask := mask_of(loaded)),
            known=(known := deployments_of(loaded)),
            vectors=VectorTape(mask, known, sizes_of(loaded)),
        )
        self.tape.load()
        self._script = self.tape

    def _connect(self) -> ClientFactory:
        scripted = self._scripted()
        if not self._records:
            return scripted
        return RecordingClients(LLMGateway._connect(self), scripted, self.tape, self._ledger, self._clock)  # noqa: SLF001 - of this very gateway


def mask_of(config: GatewayConfig) -> Callable[[str], str]:
    """Return what takes keys out of a text: those of the configuration and environment, and what looks like one."""
    names = {each.provider for model in config.models.values() for each in model.all_deployments()}
    secrets = (endpoint_of(config, name, os.environ).api_key for name in sorted(names | set(config.providers)))
    keys = {secret.get_secret_value() for secret in secrets if secret is not None}
    longest_first = sorted((key for key in keys if len(key) >= SHORTEST_KEY), key=len, reverse=True)

    def mask(text: str) -> str:
        for key in longest_first:
            text = text.replace(key, MASK)
        return KEY_LIKE.sub(MASK, text)

    return mask


class RecordingClients:
    """Makes clients that ask the real model for what the tape has not."""

    def __init__(
        self, real: ClientFactory, scripted: ScriptedClients, tape: Tape, ledger: Ledger, clock: Clock
    ) -> None:
        self._real = real
        self._scripted = scripted
        self._tape = tape
        self._ledger = ledger
        self._clock = clock

    def connect(self, deployment: Deployment, /) -> ChatClient:
        """Return a client. Raises ConfigurationError as the real one does: recording needs the key."""
        kind = RecordingVectors if deployment.settings.embedding else RecordingClient
        return kind(
            deployment,
            self._real.connect(deployment),
            self._scripted.connect(deployment),
            tape=self._tape,
            ledger=self._ledger,
            clock=self._clock,
        )

    async def aclose(self) -> None:
        """Close the connections to the real models."""
        await self._real.aclose()

    def abandon(self) -> None:
        """Let go of them at once."""
        self._real.abandon()


class RecordingClient:
    """Answers from the tape, or asks the real model and keeps its answer there."""

    def __init__(
        self,
        deployment: Deployment,
        real: ChatClient,
        scripted: ScriptedClient,
        *,
        tape: Tape,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._deployment = deployment
        self._real = real
        self._scripted = scripted
        self._tape = tape
        self._ledger = ledger
        self._clock = clock

    def check(self, request: LLMRequest, /) -> None:
        """Refuse what the real model would."""
        self._real.check(request)

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Answer; a failure that would come again is kept too."""
        if self._has(request):
            return await self._scripted.generate(request)
        call = self._begin(request)
        try:
            completion = await self._real.generate(request)
        except ProviderError as error:
            self._keep(call, reply_of_error(error))
            raise
        self._keep(call, reply_of(completion))
        return completion

    async def stream(self, request: LLMRequest, /) -> AsyncGenerator[StreamDelta | Completion, None]:
        """Answer piece by piece; of a stream that its reader leaves, what came so far is kept."""
        if self._has(request):
            async with aclosing(self._scripted.stream(request)) as known:
                async for piece in known:
                    yield piece
            return
        call = self._begin(request)
        heard: list[StreamDelta | Completion] = []
        try:
            async with aclosing(self._real.stream(request)) as pieces:
                async for piece in pieces:
                    heard.append(piece)
                    yield piece
        except ProviderError as error:
            self._keep(call, reply_of_error(error))
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self._keep(call, _heard(heard) if heard else None)
            raise
        self._keep(call, _heard(heard))

    async def aclose(self) -> None:
        """Close the real client."""
        await self._real.aclose()

    def _asked(self, request: LLMRequest, attempt: int) -> Asked:
        return Asked(request=request, model=self._deployment.name, attempt=attempt)

    def _has(self, request: LLMRequest) -> bool:
        return self._tape.has(self._asked(request, attempt=1))

    def _begin(self, request: LLMRequest) -> RecordedCall:
        call = self._ledger.begin(request, self._deployment.name, at=self._clock.now())
        call.rule = "model"
        return call

    def _keep(self, call: RecordedCall, reply: Mapping[str, Any] | None) -> None:
        if reply is not None:
            self._tape.record(self._asked(call.request, call.attempt), self._deployment.label, reply)


class RecordingVectors(RecordingClient):
    """Asks the real model for the vectors of the texts that the tape has not."""

    async def generate(self, request: LLMRequest, /) -> Completion:
        """Answer with one call at most; why a single text has no vector is kept too."""
        tape, name = self._tape.vectors, self._deployment.name
        kept = [tape.find(name, str(each.content)) for each in request.messages]
        if all(kept):
            return await self._scripted.generate(request)
        new = [
            each for each, known in zip(request.messages, kept, strict=True) if known is None or known.vector is None
        ]
        part = request.model_copy(update={"messages": new})
        call = self._begin(part)
        asked = self._asked(part, call.attempt)
        try:
            completion = await self._real.generate(part)
        except ProviderError as error:
            reply = reply_of_error(error)
            if reply is not None and len(new) == 1:
                tape.record_error(self._deployment.label, asked, reply)
            raise
        tape.record(self._deployment.label, asked, completion)
        assert isinstance(request, EmbeddingRequest)  # noqa: S101 - checked before it was queued
        return replace(completion, vectors=tape.vectors_of(request, name)[0])


def _heard(pieces: list[StreamDelta | Completion]) -> dict[str, Any]:
    """Return the answer that a stream brought, or as much of its text as it did."""
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta))
    if isinstance(pieces[-1], Completion):
        return reply_of(pieces[-1], reasoning)
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))
    return reply_of(Completion(content=text), reasoning)
