"""What Python code may say of a run of a job."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ValidationError

from llm_gateway.config.settings import Positive, Settings
from llm_gateway.errors import ConfigurationError
from llm_gateway.models import Numeric, RequestPriority
from llm_gateway.price_lanes import LaneChoice
from llm_gateway.sentences import sentence_of


class Options(Settings):
    """The values among a job's options; what they mean stands at `Job`."""

    priority: Annotated[RequestPriority, Numeric] | None = None
    lane: LaneChoice | None = None
    deadline: Positive | None = None
    poll: Positive
    lease_seconds: Positive | None = None
    budget: Positive | None = None

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Check them. Raises ConfigurationError that names the option, its value and what it should be."""
        try:
            return cls(**given)
        except ValidationError as error:
            name, reason = sentence_of(error, cls)
            raise ConfigurationError(f"gateway.job({name}=…): {reason}") from None
