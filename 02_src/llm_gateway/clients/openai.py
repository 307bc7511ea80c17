"""OpenAI, and every server that speaks its API: ChatOpenAI over the lean transport, or the SDK's over aiohttp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr

from llm_gateway.clients.asking import TakesTexts
from llm_gateway.clients.base import Completion, Deployment
from llm_gateway.clients.batches.openai import OpenAIBatches
from llm_gateway.clients.chat import LangChainClient, PlainDialect
from llm_gateway.clients.construction import check_options, constructing, key_of, with_profile
from llm_gateway.clients.lean import http, seams
from llm_gateway.clients.lean import openai as lean
from llm_gateway.clients.messages import plausible, usage_of
from llm_gateway.clients.schemas import strict
from llm_gateway.clients.text import readable
from llm_gateway.clients.transport import PoolLease, Pools, httpx2_options
from llm_gateway.models import LLMMessage, LLMRequest
from llm_gateway.price_lanes import FLEX_SECONDS

OURS = frozenset({
    "model", "model_name", "base_url", "openai_api_base", "api_key", "openai_api_key", "max_retries", "timeout",
    "request_timeout", "max_tokens", "max_completion_tokens", "http_client", "http_async_client", "openai_proxy",
    "cache",
})  # fmt: skip


PLAIN_VALUES = frozenset({str, int, float, type(None)})
MOST_FRAMES = 256  # agents ask with a few settings of temperature and length
KINDS: dict[str, type[BaseMessage]] = {"user": HumanMessage, "system": SystemMessage, "assistant": AIMessage}
PLAIN_KINDS = frozenset(KINDS.values())


@dataclass(slots=True)
class Known:
    """What LangChain needs to be asked for only once. In one place, since pydantic takes its time to find a private."""

    forms: dict[type, dict[str, Any]] = field(default_factory=dict)  # how a plain text is sent, by its class
    frames: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # payloads of no messages
    defaults: dict[str, Any] | None = None


class GPT(TakesTexts, ChatOpenAI):
    """ChatOpenAI that takes an answer also where the usage that comes with it is nonsense; it is unknown then."""

    _lean: lean.Completions | None = PrivateAttr(default=None)  # what to call instead of the SDK
    _known: Known = PrivateAttr(default_factory=Known)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        """Call without the SDK, and without the hop to a thread that LangChain reads the answer in."""
        completions = self._lean
        if completions is not None and not self.include_response_headers:
            payload = self._get_request_payload(messages, stop=stop, **kwargs)
            if "messages" in payload:  # the Responses API has an "input"
                return self._create_chat_result(await completions.create(**payload))
        return await super()._agenerate(messages, stop, run_manager, **kwargs)

    async def agenerate_texts(self, messages: Sequence[LLMMessage], arguments: dict[str, Any], /) -> ChatResult | None:
        """Call without the SDK, and with the messages in the form that LangChain gives to one of their roles."""
        completions = self._lean
        if completions is None or self.include_response_headers:
            return None
        payload = self._payload_of_texts(messages, arguments)
        return None if payload is None else self._create_chat_result(await completions.create(**payload))

    def _payload_of_texts(self, messages: Sequence[LLMMessage], arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Return the payload of plain texts; None if LangChain has to see the messages."""
        if self.use_previous_response_id or "stop" in arguments:
            return None
        known = self._known
        sent = []
        for message in messages:
            role, content = message.role, message.content
            if type(content) is not str or role == "tool" or message.tool_calls:
                return None
            form = known.forms.get(KINDS[role]) or self._form(KINDS[role](""), known.forms)
            if form is None:
                return None
            sent.append({**form, "content": content})
        payload = self._frame(None, arguments, known.frames)
        if "messages" not in payload:  # the Responses API has another form
            return None
        payload["messages"] = sent
        return payload

    def _get_request_payload(self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Let LangChain translate a plain text of each role once, and only what is more than that each time.

        It takes its time for every message, and reads the words of answers a character at a time for sound in them.
        """
        plain = isinstance(input_, list) and not self.use_previous_response_id
        known = self._known
        forms = [self._form(each, known.forms) for each in input_] if plain else [None]
        if all(form is None for form in forms):
            return super()._get_request_payload(input_, stop=stop, **kwargs)
        rest = [each for each, form in zip(input_, forms, strict=True) if form is None]
        payload = (
            super()._get_request_payload(rest, stop=stop, **kwargs) if rest else self._frame(stop, kwargs, known.frames)
        )
        if "messages" not in payload:  # the Responses API has another form
            return super()._get_request_payload(input_, stop=stop, **kwargs)
        translated = iter(payload["messages"])
        payload["messages"] = [
            next(translated) if form is None else {**form, "content": each.content}
            for each, form in zip(input_, forms, strict=True)
        ]
        return payload

    def _frame(
        self, stop: list[str] | None, arguments: dict[str, Any], known: dict[tuple[Any, ...], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the payload of no messages; that of a few plain arguments is put together once."""
        if stop or not PLAIN_VALUES.issuperset(map(type, arguments.values())):
            return super()._get_request_payload([], stop=stop, **arguments)
        key = (*arguments.items(), *map(type, arguments.values()))  # 1 and 1.0 are the same key, and not the same JSON
        frame = known.get(key)
        if frame is None:
            if len(known) >= MOST_FRAMES:
                known.clear()
            frame = known[key] = super()._get_request_payload([], **arguments)
        return frame.copy()  # its messages are put in; what lies deeper nobody changes

    def _form(self, message: Any, known: dict[type, dict[str, Any]]) -> dict[str, Any] | None:
        """Return how a plain text of a message's role is sent, None for a message that is more than that."""
        kind = type(message)
        if kind not in PLAIN_KINDS or not _is_plain(message):
            return None
        form = known.get(kind)
        if form is None:
            sent = super()._get_request_payload([kind("")]).get("messages")
            form = known[kind] = sent[0] if sent else {}
        return form or None

    @property
    def _default_params(self) -> dict[str, Any]:
        """Gather the parameters of every call once; nobody changes them after the model was made."""
        known = self._known
        if known.defaults is None:
            known.defaults = super()._default_params
        return known.defaults.copy()

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        if isinstance(response, dict):
            return self._result_of_json(response, generation_info)
        usage = getattr(response, "usage", None)
        if usage is not None and not plausible(usage):
            response = response.model_copy(update={"usage": None})
        return super()._create_chat_result(response, generation_info)

    def _result_of_json(self, response: dict[str, Any], generation_info: dict[str, Any] | None) -> ChatResult:
        usage = response.get("usage")
        if usage and not (isinstance(usage, dict) and plausible(usage)):
            response = response | {"usage": None}
        result = super()._create_chat_result(response, generation_info)
        for choice, generation in zip(response["choices"], result.generations, strict=True):
            if refusal := choice["message"].get("refusal"):  # LangChain looks for it in the SDK's records alone
                generation.message.additional_kwargs["refusal"] = refusal
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], default_chunk_class: type, base_generation_info: dict[str, Any] | None
    ) -> ChatGenerationChunk | None:
        """Keep what LangChain drops from a stream: refusals, and the reasoning that other servers tell."""
        usage, choices = chunk.get("usage"), chunk.get("choices")
        if usage and not (isinstance(usage, dict) and plausible(usage)):
            chunk = chunk | {"usage": None}
        if choices and choices[0].get("delta") is None:  # how Azure tells of its filters
            choices = [choices[0] | {"delta": {}}]
            chunk = chunk | {"choices": choices}
        made = super()._convert_chunk_to_generation_chunk(chunk, default_chunk_class, base_generation_info)
        if made is not None and choices:
            delta = choices[0]["delta"]
            dropped = {
                "refusal": delta.get("refusal"),
                "reasoning_content": delta.get("reasoning_content") or delta.get("reasoning"),
            }
            made.message.additional_kwargs.update({name: text for name, text in dropped.items() if text})
        return made


def _is_plain(message: Any) -> bool:
    """Tell whether a message is a text and nothing else."""
    if type(message.content) is not str or message.name or message.additional_kwargs or message.response_metadata:
        return False
    return type(message) is not AIMessage or not (message.tool_calls or message.invalid_tool_calls)


class OpenAIDialect(PlainDialect):
    """OpenAI's chat completions and responses.

    `timeout` is that of the endpoint, in seconds; calls of the flex lane get more.
    """

    def __init__(self, timeout: float = FLEX_SECONDS) -> None:
        self._timeout = max(timeout, FLEX_SECONDS)

    def arguments(self, request: LLMRequest, model: BaseChatModel, /) -> dict[str, Any]:
        """Ask for strict mode where the schema has a form that it takes; else the model may stray from it."""
        arguments = super().arguments(request, model)
        if request.lane == "flex":
            arguments |= {"service_tier": "flex", "timeout": self._timeout}
        if request.response_format is not None:
            form = arguments["response_format"]["json_schema"]
            form["schema"], form["strict"] = self.enforced(form["schema"])
            if request.tools:  # which the SDK's own parsing wants to be strict, too
                arguments = self.streaming(arguments, model)
        return arguments

    def enforced(self, schema: dict[str, Any], /) -> tuple[dict[str, Any], bool]:
        """Return a schema as it is sent, and whether in strict mode."""
        exact = strict(schema)
        return (schema, False) if exact is None else (exact, True)

    def recover(self, error: Exception, /) -> Completion | None:
        """Return the answer that the SDK refuses to give since, cut or filtered, it cannot follow the schema."""
        if not isinstance(error, openai.LengthFinishReasonError | openai.ContentFilterFinishReasonError):
            return None
        answer = error.completion
        if answer is None or not answer.choices:
            return None
        choice, usage = answer.choices[0], answer.usage
        counted = None
        if usage is not None:
            into, out = usage.prompt_tokens_details, usage.completion_tokens_details
            counted = usage_of(
                input_tokens=[usage.prompt_tokens],
                output_tokens=[usage.completion_tokens],
                cache_read_tokens=[(into.cached_tokens if into else None) or 0],
                reasoning_tokens=[(out.reasoning_tokens if out else None) or 0],
            )
        content = readable(choice.message.content or "")
        return Completion(content=content, finish_reason=choice.finish_reason, usage=counted)

    def streaming(self, arguments: dict[str, Any], model: BaseChatModel, /) -> dict[str, Any]:
        """Hand a schema past LangChain, whose streams of such answers raise where one is cut, and drop its usage."""
        responses = model._use_responses_api(arguments)  # type: ignore[attr-defined]  # noqa: SLF001 - a test watches
        if responses or "response_format" not in arguments:
            return arguments
        schema = {"response_format": arguments.pop("response_format")}
        return arguments | {"extra_body": {**(getattr(model, "extra_body", None) or {}), **schema}}


def lease_http(deployment: Deployment, pools: Pools, *, trust_env: bool = True) -> PoolLease:
    """Return a share in the endpoint's HTTP client."""

    def make() -> tuple[Any, Any]:
        client = openai.DefaultAioHttpClient(**httpx2_options(deployment.endpoint, trust_env=trust_env))
        return client, client.aclose

    return pools.lease(deployment.endpoint, make)


def chat_model(deployment: Deployment, lease: PoolLease, *, base_url: str | None, key: str) -> GPT:
    """Return the chat model of a deployment at `base_url`."""
    settings = deployment.settings

    async def current_key() -> str:  # given as a coroutine, since no synchronous client is made for one
        return key

    def build(name: str) -> GPT:
        return GPT(
            # It uses our connections, which heed the proxies of the environment; with socket options of its own it
            # would warn that they do not.
            **{"stream_usage": True, "stream_chunk_timeout": None, "http_socket_options": ()}
            | check_options(deployment, OURS),
            model=name,
            base_url=base_url,
            api_key=current_key,
            max_retries=0,
            timeout=lease.client.timeout,
            http_async_client=lease.client,
            cache=False,
            **({"max_tokens": settings.max_tokens} if settings.max_tokens else {}),
        )

    with constructing(deployment):
        return with_profile(build, settings.model)


def connect(deployment: Deployment, pools: Pools) -> LangChainClient:
    """Return the client of an OpenAI deployment. Raises MissingApiKeyError, ConfigurationError."""
    key = key_of(deployment)
    endpoint = deployment.endpoint
    lease = lease_http(deployment, pools)
    model = chat_model(deployment, lease, base_url=endpoint.base_url, key=key)
    leases = [lease]
    is_lean = endpoint.transport == "lean" and seams.fits(ChatOpenAI, lean.SEAM, lean.FIELDS)
    if is_lean:
        # The SDK stays below for the Responses API; it opens no connection before its first call.
        leases.insert(0, http.lease(endpoint, pools))
        sdk = model.root_async_client
        url = f"{str(sdk.base_url).rstrip('/')}/chat/completions"
        headers = {"authorization": f"Bearer {key}"} | http.sdk_headers(sdk.default_headers)
        target = http.Target(url, headers, too_long=lean.TOO_LONG).varied({}, sdk.default_query)
        model._lean = model.async_client = lean.Completions(leases[0].client, target)  # noqa: SLF001 - our own subclass
    return LangChainClient(
        model, deployment, OpenAIDialect(endpoint.timeout), leases=leases, lean=is_lean, batches=OpenAIBatches
    )
