"""The exact cache: an answer that was kept is given to every identical request.

It stands before queue, limits and budgets. Where its store cannot be used, everything goes on without it.
"""

from llm_gateway.cache.answers import Answers, CacheFigures
from llm_gateway.cache.caching import Caching, Missed, fits, identity, key_of, pieces_of, qualifies
from llm_gateway.cache.opening import store_of
from llm_gateway.cache.store import AnswerStore, CacheStoreError

__all__ = [
    "AnswerStore",
    "Answers",
    "CacheFigures",
    "CacheStoreError",
    "Caching",
    "Missed",
    "fits",
    "identity",
    "key_of",
    "pieces_of",
    "qualifies",
    "store_of",
]
