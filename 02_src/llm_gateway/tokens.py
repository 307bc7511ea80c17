"""How many tokens a request will use: estimated offline, and corrected by what its model really used."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from llm_gateway.config import Charge
from llm_gateway.formats import schema_of
from llm_gateway.models import EmbeddingRequest, LLMMessage, LLMRequest, LLMTool, TokenUsage

SLICE, SLICES = 128, 6  # characters; a longer text is estimated from as many slices, evenly spread
MESSAGE_TOKENS = 4  # role and delimiters of a message
REPLY_TOKENS = 3  # the answer's opening
TOOL_TOKENS = 8  # delimiters of a tool's description
IMAGE_TOKENS = 1000  # 765 for a large image at OpenAI, up to 1,600 at Anthropic
FILE_TOKENS = 2000  # audio, video, a document: its pages are not looked at
PRIOR_OUTPUT = 512  # tokens of an answer, before one was seen

_SCRIPTS: dict[bytes, tuple[bytes, float]] = {  # first bytes of characters beyond ASCII in UTF-8, tokens of each
    b"e": (bytes(range(0xC2, 0xC4)), 0.68),  # Latin with accents
    b"p": (bytes(range(0xC4, 0xCC)), 1.2),  # rarer ones
    b"g": (bytes(range(0xCC, 0xD0)), 0.45),  # Greek
    b"c": (bytes(range(0xD0, 0xD5)), 0.31),  # Cyrillic
    b"r": (bytes(range(0xD5, 0xE0)), 0.42),  # Hebrew, Arabic
    b"i": (b"\xe0", 0.41),  # India, Thai
    b"v": (b"\xe1", 0.55),
    b"s": (b"\xe2\xee", 1.4),  # typographic signs, arrows, mathematics
    b"k": (b"\xe3", 0.73),  # kana, ideographic punctuation
    b"K": (bytes(range(0xE4, 0xEA)), 0.75),  # Han
    b"h": (bytes(range(0xEA, 0xEE)), 0.73),  # Hangul
    b"f": (b"\xef", 0.45),  # full-width forms
    b"m": (bytes(range(0xF0, 0x100)), 2.0),  # emoji
}
_CONTINUATION = bytes(range(0x80, 0xC0))
_KINDS: dict[bytes, bytes] = {
    b"l": b"abcdefghijklmnopqrstuvwxyz",
    b"U": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    b"0": b"0123456789",
    b" ": b" \t",
    **{name: firsts for name, (firsts, _) in _SCRIPTS.items()},
}
_TABLE = bytes(next((name[0] for name, each in _KINDS.items() if byte in each), ord(".")) for byte in range(256))


class Cost(NamedTuple):
    """What one call is charged, by resource. `tokens` is what a limit on input and output together counts."""

    requests: float = 1.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    tokens: float = 0.0


class Estimate(NamedTuple):
    """What a call will be charged, and the uncorrected input that `Estimator.learn` compares with the usage."""

    cost: Cost
    raw_input: int


def estimate_text(text: str) -> float:
    """Return about how many tokens `text` has for OpenAI's o200k vocabulary; others are near, and learned.

    A weighted count of kinds of characters and of changes between them, fitted to the counts of prose in ten
    languages, program code, JSON, CSV, HTML, logs, numbers, hexadecimal and base64: mostly within 15 %, in one case
    out of a hundred beyond 25 %. Its cost does not grow with long texts.
    """
    length = len(text)
    if length > SLICE * SLICES:
        step = (length - SLICE) / (SLICES - 1)
        starts = [int(step * index) for index in range(SLICES)]
        sample = "".join([text[start : start + SLICE] for start in starts])
        return _weigh(sample) * length / (SLICE * SLICES)
    return _weigh(text)


def _weigh(text: str) -> float:
    if text.isascii():
        kinds = text.encode().translate(_TABLE)
        tokens = 0.0
    else:
        # Lone surrogates are no text, but they must not fail a request here.
        kinds = text.encode("utf-8", "surrogatepass").translate(_TABLE, _CONTINUATION)
        tokens = sum([kinds.count(name) * weight for name, (_, weight) in _SCRIPTS.items()])
    count = kinds.count
    lower, upper, digits = count(b"l"), count(b"U"), count(b"0")
    tokens += 0.24 * lower + 0.33 * upper + 0.33 * digits + 0.36 * count(b".") + 0.87 * count(b" .")
    if 50 * upper > len(kinds):  # not just the beginnings of sentences: names in code, base64
        tokens += 1.57 * count(b"lU")
    if digits:
        tokens += 1.28 * count(b"0l") + 1.29 * count(b" 0") + 1.02 * count(b"0.")
    return tokens


def estimate_tool(tool: LLMTool) -> float:
    """Return about how many tokens the description of `tool` adds to a prompt."""
    text = f"{tool.name} {tool.description} {json.dumps(tool.input_schema, ensure_ascii=False, default=str)}"
    return TOOL_TOKENS + estimate_text(text)


def estimate_input(request: LLMRequest) -> int:
    """Return about how many tokens the prompt of `request` has, tools and delimiters included; at least 1."""
    return _input(request, sum(estimate_tool(tool) for tool in request.tools or ()))[0]


MOST_PER_BLOCK = 50_000  # tokens; what the dearest model counts for one large image
MOST_PER_MESSAGE = 64  # role, delimiters, name, and an unfamiliar template around them


def most_input(request: LLMRequest) -> int:
    """Return a number of tokens that the prompt of `request` cannot exceed.

    No tokenizer makes more than one token of a byte. An image or a file counts as the dearest one known.
    """
    texts: list[str] = []
    count = 0
    for message in request.messages:
        count += MOST_PER_MESSAGE
        if _collect(message, texts) > 0 and not isinstance(message.content, str):
            count += MOST_PER_BLOCK * len(message.content)
    for tool in request.tools or ():
        count += MOST_PER_MESSAGE
        texts.append(f"{tool.name} {tool.description} {json.dumps(tool.input_schema, default=str)}")
    if request.response_format is not None:
        texts.append(json.dumps(schema_of(request.response_format), default=str))
    return count + sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _input(request: LLMRequest, tools: float) -> tuple[int, int]:
    """Return the estimated tokens of a prompt, and its characters."""
    texts: list[str] = []
    tokens = REPLY_TOKENS + tools
    for message in request.messages:
        tokens += MESSAGE_TOKENS
        if isinstance(message.content, str) and not message.tool_calls:  # as mostly
            texts.append(message.content)
        else:
            tokens += _collect(message, texts)
    if request.response_format is not None:
        texts.append(json.dumps(schema_of(request.response_format), ensure_ascii=False, default=str))
    text = texts[0] if len(texts) == 1 else "\n".join(texts)
    return max(1, round(tokens + estimate_text(text))), len(text)


def _collect(message: LLMMessage, texts: list[str]) -> int:
    """Append the texts of `message`; return the tokens of what is no text."""
    tokens = 0
    if isinstance(message.content, str):
        texts.append(message.content)
    else:
        for block in message.content:
            tokens += _collect_block(block, texts)
    for call in message.tool_calls or ():
        texts.append(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False, default=str)}")
        tokens += MESSAGE_TOKENS
    return tokens


def _collect_block(block: dict[str, Any], texts: list[str]) -> int:
    kind = str(block.get("type", ""))
    if kind == "text":
        texts.append(str(block.get("text", "")))
        return 0
    if "image" in kind:
        return IMAGE_TOKENS
    if kind in {"file", "input_file", "document", "audio", "input_audio", "video", "media"}:
        return FILE_TOKENS
    if isinstance(block.get("content"), list):  # the result of a tool, in blocks
        inner = (each for each in block["content"] if isinstance(each, dict))
        return sum(_collect_block(each, texts) for each in inner)
    texts.append(json.dumps(block, ensure_ascii=False, default=str))
    return 0


FIRST_STEP, SMALLEST_STEP = 0.7, 0.05
SETTLED = (FIRST_STEP / SMALLEST_STEP) ** 2  # numbers, after which the steps grow no smaller


@dataclass(slots=True)
class RunningQuantile:
    """A quantile of positive numbers that drifts with them, in two floats of memory.

    Robbins and Monro, "A Stochastic Approximation Method", 1951, on logarithms: each number moves the value by a step
    up or down, so that as many as asked for come to lie below.
    """

    share: float  # of the numbers that are to lie below `value`
    value: float = 1.0
    count: int = 0

    def add(self, number: float) -> None:
        """Take one number into account."""
        count = self.count = self.count + 1
        if count == 1:
            self.value = number
            return
        step = SMALLEST_STEP if count >= SETTLED else FIRST_STEP / math.sqrt(count)
        self.value *= math.exp(step * (self.share - (number < self.value)))


class Estimator:
    """Estimates what calls will be charged, and learns from what they used.

    The input's error is learned for each model, the output's size for each model and agent. Both stand so high that
    three calls in ten use more: above the mean of skewed sizes, so that debts are rare, yet little is reserved in
    vain. Memory is bounded: the agents and tools that were not seen for longest are forgotten.
    """

    SHARE = 0.7
    SMALLEST_FACTOR, LARGEST_FACTOR = 0.25, 4.0
    REMEMBERED = 4096
    ENOUGH = 10  # answers of an agent after which its own sizes count

    def __init__(self) -> None:
        self._factors: OrderedDict[Hashable, RunningQuantile] = OrderedDict()
        self._outputs: OrderedDict[Hashable, RunningQuantile] = OrderedDict()
        self._tools: OrderedDict[int, tuple[LLMTool, float]] = OrderedDict()

    def expected(self, request: LLMRequest, charge: Charge, *, max_tokens: int | None = None) -> Estimate:
        """Return what `request` will be charged; `max_tokens` is the model's own, for requests that set none."""
        factor = self._factors.get(request.model)
        if isinstance(request, EmbeddingRequest):
            tokens = request.tokens * (factor.value if factor is not None else 1.0)
            return Estimate(Cost(1.0, tokens, 0.0, tokens), max(1, request.tokens))
        raw, characters = _input(request, sum(self._tool_tokens(request)) if request.tools else 0.0)
        corrected = raw * factor.value if factor is not None else float(raw)
        limit = request.max_tokens or max_tokens
        if charge == "actual":
            output = self.output(request, limit)
            return Estimate(Cost(1.0, corrected, output, corrected + output), raw)
        # OpenAI goes by characters, too; whichever says more.
        asked = max(corrected, characters / 4)
        output = float(limit) if limit is not None else self.output(request, None)
        return Estimate(Cost(1.0, asked, output, _at_admission(asked, output, limit)), raw)

    def charged(self, request: LLMRequest, usage: TokenUsage, charge: Charge, *, max_tokens: int | None = None) -> Cost:
        """Return what a call that used `usage` was charged. Input read from a cache is free where usage is counted."""
        limit = request.max_tokens or max_tokens
        if isinstance(request, EmbeddingRequest):
            return Cost(1.0, float(usage.input_tokens), 0.0, float(usage.input_tokens))
        if charge == "actual":
            fresh = max(0, usage.input_tokens - usage.cache_read_tokens)
            return Cost(1.0, float(fresh), float(usage.output_tokens), float(fresh + usage.output_tokens))
        output = float(limit or usage.output_tokens)
        return Cost(1.0, float(usage.input_tokens), output, _at_admission(float(usage.input_tokens), output, limit))

    def output(self, request: LLMRequest, limit: int | None) -> float:
        """Return the expected tokens of an answer that may have `limit`: as this agent's, this model's, or a guess."""
        seen = self._outputs.get((request.model, request.agent))
        if seen is None or seen.count < self.ENOUGH:  # a few answers say less of an agent than all of its model do
            seen = self._outputs.get(request.model)
        tokens = seen.value if seen is not None else float(PRIOR_OUTPUT)
        return tokens if limit is None else min(tokens, float(limit))

    def learn(self, request: LLMRequest, estimate: Estimate, usage: TokenUsage) -> None:
        """Take into account what the call of `estimate` used."""
        if usage.input_tokens > 0:
            factor = usage.input_tokens / estimate.raw_input
            self._add(self._factors, request.model, min(self.LARGEST_FACTOR, max(self.SMALLEST_FACTOR, factor)))
        if usage.output_tokens > 0:
            self._add(self._outputs, request.model, usage.output_tokens)
            if request.agent is not None:
                self._add(self._outputs, (request.model, request.agent), usage.output_tokens)

    def _add(self, quantiles: OrderedDict[Hashable, RunningQuantile], key: Hashable, number: float) -> None:
        quantile = quantiles.get(key)
        if quantile is None:
            quantile = quantiles[key] = RunningQuantile(self.SHARE)
            if len(quantiles) > self.REMEMBERED:
                quantiles.popitem(last=False)
        quantiles.move_to_end(key)
        quantile.add(number)

    def _tool_tokens(self, request: LLMRequest) -> Iterator[float]:
        """Yield the tokens of each tool, counted once a tool object: agents send the same ones again and again."""
        for tool in request.tools or ():
            known = self._tools.get(id(tool))
            if known is None:
                # Keeping the tool keeps its id its own.
                known = self._tools[id(tool)] = (tool, estimate_tool(tool))
                if len(self._tools) > self.REMEMBERED:
                    self._tools.popitem(last=False)
            yield known[1]


def _at_admission(tokens: float, output: float, limit: int | None) -> float:
    """Return what is charged when a call begins: without `max_tokens` the provider's own guess, input and output."""
    return max(tokens, output) if limit is not None else tokens + output
