"""`llm-gateway ask`: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import typer

from llm_gateway.cli import event_loop
from llm_gateway.cli.console import duration, stderr
from llm_gateway.cli.conversation import conversation
from llm_gateway.cli.settings import BUILT_IN_MODEL, load
from llm_gateway.config import GatewayConfig
from llm_gateway.errors import InvalidRequestError
from llm_gateway.gateway import LLMGateway
from llm_gateway.models import LLMRequest, LLMResponse, RequestPriority
from llm_gateway.sentences import dollars

STANDARD_INPUT = "-"


def ask_one(
    prompt: str,
    *,
    config: Path | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    as_json: bool,
) -> None:
    """Print the answer to standard output and what it took to standard error. Raises GatewayError."""
    loaded = load(config)
    model = model or loaded.only_model or BUILT_IN_MODEL
    loaded.check_model(model)
    text = sys.stdin.read() if prompt == STANDARD_INPUT else prompt
    if not text.strip():
        raise InvalidRequestError("The prompt is empty; give a text, or - to read it from standard input.")
    request = LLMRequest(
        model=model,
        messages=conversation(text, system),
        priority=RequestPriority.HIGH,  # somebody waits
        temperature=temperature,
        max_tokens=max_tokens,
    )
    response = event_loop.run(_ask(loaded.config, request))
    typer.echo(orjson.dumps(response.model_dump(), option=orjson.OPT_INDENT_2) if as_json else response.content)
    stderr().print(_receipt(response), style="dim")


async def _ask(config: GatewayConfig, request: LLMRequest) -> LLMResponse:
    async with LLMGateway(config) as gateway:
        return await gateway.request(request)


def _receipt(response: LLMResponse) -> str:
    receipt = response.receipt
    if receipt is None:
        return response.model
    facts = [receipt.deployment]
    if receipt.usage is not None:
        facts.append(f"{receipt.usage.input_tokens:,} tokens in, {receipt.usage.output_tokens:,} out")
    facts += [f"cost {dollars(receipt.cost_usd)}", duration(receipt.queue_wait + receipt.provider_time)]
    if receipt.attempts > 1:
        facts.append(f"{receipt.attempts} attempts")
    if response.finish_reason not in {"stop", None}:
        facts.append(f"ended by: {response.finish_reason}")
    return " · ".join(facts)
