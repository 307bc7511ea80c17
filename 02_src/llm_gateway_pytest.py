"""The pytest plugin of llm-gateway, as pytest loads it with every run: its option, its marks and its fixtures.

It lies outside the package and imports it when a fixture is first used, so that a test run that uses none pays nothing
for it, and so that coverage of llm_gateway, which begins after the plugins are loaded, misses no line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llm_gateway import MockLLMGateway
    from llm_gateway.config import GatewayConfig
    from llm_gateway.integrations.recorded_gateway import RecordedGateway

PASSED = pytest.StashKey[bool]()  # of a test's own part, without its fixtures' endings
MARKS = {
    "llm_responses(source)": """
        what the fixture mock_gateway answers: the path of a JSON file, from the test's own folder, or a dict of the
        same shape""",
    "llm_chaos(seed=0, rate_limits=0, outages=0, slow=0, truncated=0, cut_streams=0)": """
        how often, as chances from 0 to 1, the provider behind mock_gateway or recorded_gateway fails; the same seed,
        the same failures""",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("llm-gateway").addoption(
        "--llm-record",
        action="store_true",
        dest="llm_record",
        help="ask the real models what the recordings of recorded_gateway lack, and drop what they have too much",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    for mark, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{mark}: {' '.join(meaning.split())}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Remember whether a test passed: one that failed halfway says nothing about its recording."""
    if call.when == "call":
        item.stash[PASSED] = call.excinfo is None


@pytest.fixture
def llm_gateway_config() -> Mapping[str, Any] | GatewayConfig | None:
    """Return the configuration of `mock_gateway` and `recorded_gateway`; override it for one of your own."""
    return None


@pytest.fixture
def mock_gateway(
    request: pytest.FixtureRequest, llm_gateway_config: Mapping[str, Any] | GatewayConfig | None
) -> Iterator[MockLLMGateway]:
    """Yield a MockLLMGateway that waits for nothing, as the marks llm_responses and llm_chaos describe it."""
    from llm_gateway.integrations.pytest_plugin import mocked

    with mocked(request, llm_gateway_config) as gateway:
        yield gateway


@pytest.fixture
def recorded_gateway(
    request: pytest.FixtureRequest, llm_gateway_config: Mapping[str, Any] | GatewayConfig | None
) -> Iterator[RecordedGateway]:
    """Yield an LLMGateway that replays the real answers recorded beside the test; --llm-record records them."""
    from llm_gateway.integrations.pytest_plugin import recorded

    with recorded(request, llm_gateway_config, PASSED) as gateway:
        yield gateway
