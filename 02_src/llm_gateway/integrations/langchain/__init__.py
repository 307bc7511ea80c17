"""The gateway as a chat model and as an embedding model of LangChain."""

from llm_gateway.integrations.langchain.embeddings import GatewayEmbeddings
from llm_gateway.integrations.langchain.model import GatewayChatModel

__all__ = ["GatewayChatModel", "GatewayEmbeddings"]
