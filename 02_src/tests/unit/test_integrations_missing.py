"""What somebody sees who uses an integration without its library, and what it costs those who use none."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEEDS = {"opentelemetry": ("opentelemetry", "otel"), "prometheus": ("prometheus_client", "prometheus")}


def printed_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - our own code


@pytest.mark.parametrize("module", NEEDS)
def test_a_library_that_is_missing_is_the_command_that_installs_it(module: str) -> None:
    library, extra = NEEDS[module]
    code = f"""
import sys
from llm_gateway import MissingDependencyError
sys.modules["{library}"] = None
try:
    import llm_gateway.integrations.{module}
except MissingDependencyError as error:
    print(error, error.__suppress_context__)
"""
    assert printed_by(code) == f"pip install 'llm-gateway[{extra}]' True"


def test_whoever_uses_no_integration_imports_none_of_their_libraries() -> None:
    code = "import sys, llm_gateway, llm_gateway.gateway, llm_gateway.mock_gateway; print(*sys.modules)"
    loaded = set(printed_by(code).split())
    assert not loaded & {"opentelemetry", "prometheus_client", "structlog", "llm_gateway.integrations"}
