"""The plan before a run: what an input would cost, how long it would take, and which limit binds."""

from llm_gateway.planning.census import Census
from llm_gateway.planning.estimate import estimate
from llm_gateway.planning.plan import LanePlan, ModelPlan, Plan, Span

__all__ = ["Census", "LanePlan", "ModelPlan", "Plan", "Span", "estimate"]
