"""A chat model's side of a batch: requests as payloads, answers as completions, errors as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult

from llm_gateway.clients.asking import message_of
from llm_gateway.clients.base import Completion
from llm_gateway.clients.failures import Failures
from llm_gateway.clients.lean.call import EXTRAS
from llm_gateway.clients.lean.faults import refusal
from llm_gateway.clients.messages import langchain_messages
from llm_gateway.clients.shaping import AnswerTool
from llm_gateway.clients.transport import Exchange
from llm_gateway.errors import ProviderError
from llm_gateway.models import LLMRequest

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Translator:
    """Lets a LangChain chat model write the requests of a batch and read its answers."""

    model: BaseChatModel
    check: Callable[[LLMRequest], None]  # raises InvalidRequestError for what the model is known to refuse
    arguments: Callable[[LLMRequest], Record]  # of `model.ainvoke`
    completed: Callable[[AIMessage], Completion]
    failures: Failures
    shape: Callable[[LLMRequest], tuple[LLMRequest, AnswerTool | None]]  # how a format is asked for

    def payload(self, request: LLMRequest) -> Record:
        """Return the body that a call for this request would have. Raises ProviderError, InvalidRequestError."""
        plain = request.model_copy(update={"lane": None}) if request.lane is not None else request
        self.check(plain)
        try:
            shaped, _ = self.shape(plain)
            arguments = self.arguments(shaped)
            messages = langchain_messages(shaped.messages)
            payload: Record = self.model._get_request_payload(messages, **arguments)  # type: ignore[attr-defined]  # noqa: SLF001 - a test watches over it
        except Exception as error:  # noqa: BLE001 - whatever it is, there is a name for it
            raise self.failure(error, request.request_id) from None
        more = payload.get("extra_body") or {}
        return {name: value for name, value in payload.items() if name not in {*EXTRAS, "stream", "timeout"}} | more

    def completion(self, answer: Any, read: Any, request_id: str) -> Completion | ProviderError:
        """Return the answer that a body is, `read` by the chat model; an error if it is none."""
        try:
            result: ChatResult = read(answer)
            return self.completed(message_of(result))
        except Exception as error:  # noqa: BLE001 - as in a call: an answer that cannot be read
            return self.failure(error, request_id, status=200)

    def finished(self, request: LLMRequest, completion: Completion) -> Completion:
        """Return an answer by the call of a tool that was to take it as the text that the caller asked for."""
        _, tool = self.shape(request)
        return completion if tool is None else tool.answer(completion)

    def refused(self, status: int, body: Any, request_id: str) -> ProviderError:
        """Return the error that a provider answered to one request of a batch."""
        return self.failure(refusal(status, body), request_id)

    def failure(self, error: Exception, request_id: str, *, status: int | None = None) -> ProviderError:
        """Return our error for one of an SDK's."""
        failure, cause = self.failures.translate(error, Exchange(status=status), request_id)
        failure.__cause__ = cause
        return failure
