"""Virtual time, by the name that the tests know it by."""

from __future__ import annotations

from llm_gateway.simulation.virtual_time import VirtualTimeLoop, run_virtual

__all__ = ["VirtualTimeLoop", "run_virtual"]
