"""Which deployment serves a request, and what becomes of each attempt's outcome."""

from llm_gateway.router.breaker import Breaker
from llm_gateway.router.deployments import Deployments
from llm_gateway.router.outcomes import Outcomes
from llm_gateway.router.reading import reading_of
from llm_gateway.router.upstream import Spread, Upstream

__all__ = ["Breaker", "Deployments", "Outcomes", "Spread", "Upstream", "reading_of"]
