"""The price lane of a call: which one it takes, and when it leaves the flex lane."""

from __future__ import annotations

from http import HTTPStatus

from llm_gateway.errors import ProviderError, ProviderOverloadedError, ProviderTimeoutError
from llm_gateway.models import LLMRequest, RequestPriority
from llm_gateway.price_lanes import chosen
from llm_gateway.queue import Ticket
from llm_gateway.router import Upstream


def in_lane(ticket: Ticket, upstream: Upstream) -> LLMRequest:
    """Return the request of a call that begins now as it goes out, and note its lane.

    What has met no room in the flex lane, or waited there in vain, does not go there again.
    """
    patience = None if ticket.deadline is None else ticket.submitted + ticket.deadline - ticket.started
    lane = chosen(
        ticket.wanted or "standard",
        kind=upstream.deployment.endpoint.kind,
        model=upstream.deployment.settings.model,
        is_low=ticket.priority is RequestPriority.LOW,
        patience=patience,
    )
    ticket.price_lane = "flex" if lane == "flex" and not ticket.left_flex else "standard"
    return ticket.request.model_copy(update={"lane": ticket.price_lane})


def is_no_room(error: ProviderError) -> bool:
    """Whether a failure of the flex lane says nothing about the standard one.

    `resource_unavailable` is a 429 that is no rate limit and costs nothing. An answer that did not come in time may
    have been paid; the next one must come soon.
    """
    unavailable = isinstance(error, ProviderOverloadedError) and error.status == HTTPStatus.TOO_MANY_REQUESTS
    return unavailable or isinstance(error, ProviderTimeoutError)
