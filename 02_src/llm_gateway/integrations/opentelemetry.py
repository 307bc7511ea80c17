"""OpenTelemetry: a span for each request, one below it for each attempt, and metrics.

Names follow the semantic conventions for generative AI as of their release 1.42 (status: development); what they have
no name for begins with `llm_gateway.`. Without an SDK that somebody configured, the API's spans and metrics are empty
and cost next to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from llm_gateway.errors import MissingDependencyError
from llm_gateway.events import AttemptBegan, AttemptFailed, Event, RequestDone, RequestQueued, RetryScheduled
from llm_gateway.models import RequestPriority

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace

    from llm_gateway.integrations.otel_measures import Figures, Kind, Measures
except ImportError:
    raise MissingDependencyError("pip install 'llm-gateway[otel]'") from None

SCOPE = "llm_gateway"
PRIORITIES = {priority: priority.name.lower() for priority in RequestPriority}

# The conventions' own words for the kinds of provider; they do not know the others, which keep our name.
PROVIDERS: Mapping[str, str] = {
    "azure_ai": "azure.ai.inference",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "ibm": "ibm.watsonx.ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}


@dataclass(slots=True)
class _Open:
    """The spans of a request that has not ended."""

    span: trace.Span
    operation: str
    sampled: bool  # otherwise its span records nothing, and stands for its attempts too
    context: contexts.Context  # in which `span` is the current one
    attempt: trace.Span | None = None
    before: contexts.Context | None = None  # what was current when the attempt began
    provider: str | None = None


class GatewayTelemetry:
    """An observer that makes OpenTelemetry spans and metrics of a gateway's events.

    A request's span is a child of the span that is current where the request is submitted. While a provider call runs,
    the span of that attempt is the current one, so that an instrumented HTTP client continues the trace.

    Neither prompts nor answers, nor what a provider says of an error, get into a span. `with_text` asks for them; the
    gateway hands them out only if its configuration has `logs.text` too. No metric ever holds a text. Two requests
    that are under way with the same id share the span of the first.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        with_text: bool = False,
    ) -> None:
        """Use the given providers, or the global ones."""
        release = version("llm-gateway")
        self._tracer = trace.get_tracer(SCOPE, release, tracer_provider)
        self._with_text = with_text
        self._measures = Measures(metrics.get_meter(SCOPE, release, meter_provider))
        self._open: dict[str, _Open] = {}
        self._hear: Mapping[type[Event], Callable[[Any], None]] = {
            RequestQueued: self._queued,
            AttemptBegan: self._began,
            AttemptFailed: self._failed,
            RetryScheduled: self._retry,
            RequestDone: self._done,
        }

    def observe(self, event: Event, /) -> None:
        """Begin, mark or end a span, and record what is measured."""
        hear = self._hear.get(type(event))
        if hear is not None:
            hear(event)

    # --- one request --------------------------------------------------------------------------------------------

    def _queued(self, event: RequestQueued) -> None:
        if event.request_id in self._open:
            return
        span = self._tracer.start_span(
            f"{event.operation} {event.model}",
            kind=trace.SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": event.operation,
                "gen_ai.request.model": event.model,
                "llm_gateway.request.id": event.request_id,
                "llm_gateway.request.priority": PRIORITIES[event.priority],
            },
        )
        context = trace.set_span_in_context(span)
        self._open[event.request_id] = _Open(span, event.operation, span.is_recording(), context)

    def _began(self, event: AttemptBegan) -> None:
        request = self._open.get(event.request_id)
        if request is None:
            return
        request.provider = PROVIDERS.get(event.provider, event.provider)
        request.before = contexts.get_current()
        if not request.sampled:  # decided once: nothing more is made of it, and the call still sees its trace
            request.attempt = request.span
            contexts.attach(request.context)
            return
        request.span.add_event("llm_gateway.queue.left", {"llm_gateway.queue.wait": event.queue_wait})
        # It bears no gen_ai.* attributes of its own: whoever counts the operations of a trace counts each one once.
        attempt = request.attempt = self._tracer.start_span(
            "attempt",
            context=request.context,
            kind=trace.SpanKind.CLIENT,
            attributes={
                "llm_gateway.attempt": event.attempt,
                "llm_gateway.batch.id": event.batch_id,
                "llm_gateway.deployment": event.deployment,
            },
        )
        contexts.attach(trace.set_span_in_context(attempt, request.context))

    def _failed(self, event: AttemptFailed) -> None:
        request = self._open.get(event.request_id)
        if request is None or request.attempt is None:
            return
        attempt = request.attempt
        attempt.set_attribute("error.type", event.kind)
        if event.status is not None:
            attempt.set_attribute("http.response.status_code", event.status)
        attempt.set_status(trace.StatusCode.ERROR, event.message if self._with_text else None)
        _end_attempt(request)

    def _retry(self, event: RetryScheduled) -> None:
        request = self._open.get(event.request_id)
        if request is not None:
            request.span.add_event(
                "llm_gateway.retry.scheduled",
                {"llm_gateway.attempt": event.attempt, "llm_gateway.retry.wait": event.wait, "error.type": event.kind},
            )

    def _done(self, event: RequestDone) -> None:
        request = self._open.pop(event.request_id, None)
        error = None if event.outcome == "ok" else event.outcome
        self._measure(event, request, error)
        if request is None:
            return
        if error is not None and request.sampled:
            for span in filter(None, (request.attempt, request.span)):
                span.set_attribute("error.type", error)
                if error != "cancelled":  # a caller that leaves is nobody's failure
                    span.set_status(trace.StatusCode.ERROR)
        _end_attempt(request)
        if request.sampled:
            request.span.set_attributes(self._facts(event, request.provider))
            request.span.end()

    # --- what is told of it -------------------------------------------------------------------------------------

    def _measure(self, event: RequestDone, request: _Open | None, error: str | None) -> None:
        provider, answered = _provider_and_model(event, request.provider if request else None)
        operation = request.operation if request else "chat"
        usage = event.usage
        figures = Figures(
            Kind(operation, provider, event.model, answered, PRIORITIES[event.priority], error),
            event.queue_wait + event.provider_time,
            event.queue_wait,
            event.time_to_first_token,
            None if usage is None else (usage.input_tokens, usage.output_tokens),
            event.cost_usd,
            request.span.get_span_context() if request is not None and request.sampled else None,
        )
        self._measures.add(figures)

    def _facts(self, event: RequestDone, provider: str | None) -> dict[str, Any]:
        """Return the attributes of a request's span that are known at its end."""
        name, model = _provider_and_model(event, provider)
        facts: dict[str, Any] = {
            "gen_ai.provider.name": name,
            "llm_gateway.attempts": event.attempt,
            "llm_gateway.deployment": event.deployment,
            "llm_gateway.queue.wait": event.queue_wait,
        }
        if event.agent is not None:
            facts["gen_ai.agent.name"] = event.agent
        if event.cost_usd is not None:
            facts["llm_gateway.cost_usd"] = event.cost_usd
        if event.cached:
            facts["llm_gateway.cached"] = True
        if event.outcome == "ok":
            facts["gen_ai.response.model"] = model
        if event.time_to_first_token is not None:
            facts["gen_ai.request.stream"] = True
            facts["gen_ai.response.time_to_first_chunk"] = event.time_to_first_token
        if event.finish_reason is not None:
            facts["gen_ai.response.finish_reasons"] = (event.finish_reason,)
        if event.usage is not None:
            facts["gen_ai.usage.input_tokens"] = event.usage.input_tokens
            facts["gen_ai.usage.output_tokens"] = event.usage.output_tokens
            facts["gen_ai.usage.cache_read.input_tokens"] = event.usage.cache_read_tokens
            facts["gen_ai.usage.cache_creation.input_tokens"] = event.usage.cache_write_tokens
        if self._with_text and event.prompt is not None:
            facts["gen_ai.input.messages"] = _json([_message(each) for each in event.prompt])
        if self._with_text and event.answer is not None:
            answer = {"role": "assistant", "parts": [_text(event.answer)], "finish_reason": event.finish_reason}
            facts["gen_ai.output.messages"] = _json([answer])
        return facts


def _end_attempt(request: _Open) -> None:
    attempt, request.attempt = request.attempt, None
    if attempt is None:
        return
    # By a token it could be taken back in the very same context only; a deadline ends an attempt from another one.
    if request.before is not None and trace.get_current_span() is attempt:
        contexts.attach(request.before)
    if attempt is not request.span:
        attempt.end()


def _provider_and_model(event: RequestDone, provider: str | None) -> tuple[str, str]:
    """Return who answered and with which model; where nothing was sent, the provider's name in the configuration."""
    section, _, model = event.deployment.partition("/")
    return provider or section, model


def _json(messages: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False, default=str)  # a content block may hold anything


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of the prompt in the conventions' form: a role, and parts of one type each."""
    content: str | Sequence[Mapping[str, Any]] = message["content"]
    if message["role"] == "tool":
        result = {"type": "tool_call_response", "id": message["tool_call_id"], "response": content}
        return {"role": "tool", "parts": [result]}
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    parts = [_text(each["text"]) if each.get("type") == "text" else dict(each) for each in blocks]
    calls = [{"type": "tool_call", **call} for call in message.get("tool_calls", ())]
    return {"role": message["role"], "parts": [*parts, *calls]}
