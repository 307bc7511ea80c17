"""Lanes and batches: when what is sent.

A batch is what queued while the slots were busy. An idle lane sends after one tick of the event loop, so that a
`gather` of agents forms one batch with no timer; a busy one sends the best waiting requests as slots come free.
"""

from llm_gateway.batching.asking import Asker, inherited, lent_slot, on_behalf_of
from llm_gateway.batching.lane import Lane
from llm_gateway.batching.many import answers_of

__all__ = ["Asker", "Lane", "answers_of", "inherited", "lent_slot", "on_behalf_of"]
