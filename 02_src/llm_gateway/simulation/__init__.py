"""Virtual time: the real gateway on an event loop whose clock jumps, before providers that are simulated.

`simulate` answers before deployment how a day of traffic fares under given limits. `VirtualTimeLoop` and
`SimulatedProvider` are its parts, of use in tests of one's own.
"""

from llm_gateway.simulation.provider import Call, SimulatedProvider
from llm_gateway.simulation.reading import MalformedLine, TraceReader, read_trace
from llm_gateway.simulation.result import ClassFigures, Ending, LimitUse, SimulationResult, Timeline
from llm_gateway.simulation.running import SimulatedGateway, simulate
from llm_gateway.simulation.trace import TracedRequest
from llm_gateway.simulation.troubles import Acceleration, Trouble
from llm_gateway.simulation.virtual_time import VirtualTimeLoop, run_virtual
from llm_gateway.simulation.work import Latency, LogNormal, RandomWork, Work

__all__ = [
    "Acceleration",
    "Call",
    "ClassFigures",
    "Ending",
    "Latency",
    "LimitUse",
    "LogNormal",
    "MalformedLine",
    "RandomWork",
    "SimulatedGateway",
    "SimulatedProvider",
    "SimulationResult",
    "Timeline",
    "TraceReader",
    "TracedRequest",
    "Trouble",
    "VirtualTimeLoop",
    "Work",
    "read_trace",
    "run_virtual",
    "simulate",
]
