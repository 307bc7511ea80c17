"""Pace: when a call may begin, so that no provider has to refuse it. Pure arithmetic; `now` is handed in."""

from llm_gateway.limits.base import Level, Limiter, Reservation, Resource, Wait
from llm_gateway.limits.gate import Gate
from llm_gateway.limits.headers import Standing, read_standings
from llm_gateway.limits.joint import Grant, JointPace
from llm_gateway.limits.learning import LearnedRate
from llm_gateway.limits.memory import MemoryLimiter
from llm_gateway.limits.pace import Pace
from llm_gateway.limits.paces import Paces, budgets_of
from llm_gateway.limits.settings import charge_of

__all__ = [
    "Gate",
    "Grant",
    "JointPace",
    "LearnedRate",
    "Level",
    "Limiter",
    "MemoryLimiter",
    "Pace",
    "Paces",
    "Reservation",
    "Resource",
    "Standing",
    "Wait",
    "budgets_of",
    "charge_of",
    "read_standings",
]
