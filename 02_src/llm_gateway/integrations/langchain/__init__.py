"""The gateway as a chat model of LangChain."""

from llm_gateway.integrations.langchain.model import GatewayChatModel

__all__ = ["GatewayChatModel"]
