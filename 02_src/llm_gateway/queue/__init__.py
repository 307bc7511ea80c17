"""Order: which of the waiting requests goes next. No I/O and no clock; `now` is handed in."""

from llm_gateway.queue.bounded import RequestQueue
from llm_gateway.queue.pieces import Pieces
from llm_gateway.queue.spoilt import Spoilt, asked_at_first
from llm_gateway.queue.ticket import Ticket

__all__ = ["Pieces", "RequestQueue", "Spoilt", "Ticket", "asked_at_first"]
