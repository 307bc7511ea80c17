"""What others offer for the same, each in an environment of its own: no dependency of this project."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.scene import KEY, MODELS, Scene
from bench.subjects import Ask, Tell

# What TensorZero wants to be told; it has no retries and, with nothing to write to, no records.
TENSORZERO = """
[gateway]
observability.enabled = false

[models.bench]
routing = ["local"]

[models.bench.providers.local]
type = "{api}"
model_name = "{model}"
api_base = "{base}"
api_key_location = "env::BENCH_KEY"
"""


def as_dicts(scene: Scene, prompt: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in scene.messages(prompt)]


def _router(server: str, scene: Scene) -> Any:
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    deployment = {
        "model": f"{scene.api}/{MODELS[scene.api]}",
        "api_base": scene.base_url(server),
        "api_key": KEY,
    }
    return litellm.Router(model_list=[{"model_name": "bench", "litellm_params": deployment}], num_retries=0)


@asynccontextmanager
async def litellm_router(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """LiteLLM's Router.acompletion, with one deployment and no retries."""
    router = _router(server, scene)

    async def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            answer = await router.acompletion(
                model="bench", messages=as_dicts(scene, prompt), temperature=0.0, max_tokens=256
            )
            assert answer.choices[0].message.content

    yield ask


@asynccontextmanager
async def litellm_stream(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """LiteLLM's Router.acompletion as a stream."""
    router = _router(server, scene)

    async def tell(prompt: str) -> AsyncGenerator[str, None]:
        chunks = await router.acompletion(
            model="bench", messages=as_dicts(scene, prompt), temperature=0.0, max_tokens=256, stream=True
        )
        async for chunk in chunks:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text

    yield tell


@asynccontextmanager
async def _tensorzero(server: str, scene: Scene) -> AsyncIterator[Any]:
    library: Any = importlib.import_module("tensorzero")
    os.environ["BENCH_KEY"] = KEY
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tensorzero.toml"
        base = scene.base_url(server) + ("/" if scene.api == "openai" else "/v1/")
        file.write_text(TENSORZERO.format(api=scene.api, model=MODELS[scene.api], base=base), encoding="utf-8")
        async with await library.AsyncTensorZeroGateway.build_embedded(config_file=str(file)) as client:
            yield client


def _tensorzero_input(scene: Scene, prompt: str) -> dict[str, Any]:
    """Return a conversation in TensorZero's form, which has the system's words apart."""
    messages = as_dicts(scene, prompt)
    system = [each["content"] for each in messages if each["role"] == "system"]
    rest = [each for each in messages if each["role"] != "system"]
    return {"messages": rest, **({"system": system[0]} if system else {})}


def _tensorzero_params(*, streamed: bool = False) -> dict[str, Any]:
    return {"params": {"chat_completion": {"temperature": 0.0, "max_tokens": 256}}, "stream": streamed}


@asynccontextmanager
async def tensorzero(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """TensorZero's gateway, written in Rust, in this process."""
    async with _tensorzero(server, scene) as client:

        async def ask(prompts: list[str]) -> None:
            for prompt in prompts:
                given = _tensorzero_input(scene, prompt)
                answer = await client.inference(model_name="bench", input=given, **_tensorzero_params())
                assert answer.content[0].text

        yield ask


@asynccontextmanager
async def tensorzero_stream(server: str, scene: Scene) -> AsyncIterator[Tell]:
    """TensorZero's gateway, as a stream."""
    async with _tensorzero(server, scene) as client:

        async def tell(prompt: str) -> AsyncGenerator[str, None]:
            given = _tensorzero_input(scene, prompt)
            chunks = await client.inference(model_name="bench", input=given, **_tensorzero_params(streamed=True))
            async for chunk in chunks:
                for block in chunk.content:
                    yield block.text

        yield tell


@asynccontextmanager
async def any_llm(server: str, scene: Scene) -> AsyncIterator[Ask]:
    """any-llm's client, which speaks through the providers' SDKs."""
    library: Any = importlib.import_module("any_llm")
    client = library.AnyLLM.create(scene.api, api_key=KEY, api_base=scene.base_url(server), max_retries=0)

    async def ask(prompts: list[str]) -> None:
        for prompt in prompts:
            answer = await client.acompletion(
                MODELS[scene.api], as_dicts(scene, prompt), temperature=0.0, max_tokens=256
            )
            assert answer.choices[0].message.content

    yield ask
