"""`llm-gateway models`: what can be asked, whether its key is there, what it costs and holds."""

from __future__ import annotations

import runpy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import orjson
import typer
from rich.console import Console
from rich.table import Table

from llm_gateway.cli.settings import Loaded, load
from llm_gateway.clients.base import Deployment
from llm_gateway.errors import ConfigurationError
from llm_gateway.local_model import KNOWN, model_path
from llm_gateway.pricing import price_of
from llm_gateway.router import Deployments

WIDE = 500  # columns
LOCAL_CONTEXT = 4096  # tokens; as `clients.llamacpp` has it, which takes a second to import
KeyState = Literal["present", "missing", "not needed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One line of the list. Prices in US dollars for a million tokens, None where unknown."""

    name: str
    provider: str
    model: str
    key: KeyState
    key_variable: str | None  # the environment variable that a missing key goes into
    pulled: bool | None  # of a local model that `llm-gateway pull` knows; None for any other
    input_price: float | None
    output_price: float | None
    context: int | None
    max_concurrency: int


def list_models(config: Path | None, *, as_json: bool) -> None:
    """Print the configured models to standard output. Raises ConfigurationError."""
    loaded = load(config)
    deployments = Deployments(loaded.config)
    facts = [_facts(each) for name in loaded.config.models for each in deployments[name]]
    if as_json:
        typer.echo(orjson.dumps([asdict(each) for each in facts], option=orjson.OPT_INDENT_2))
    else:
        _print_table(facts, loaded)


def _facts(deployment: Deployment) -> ModelFacts:
    endpoint, settings = deployment.endpoint, deployment.settings
    rates = price_of(deployment).rates()
    key: KeyState = "not needed"
    if endpoint.api_key is not None:
        key = "present"
    elif endpoint.key_variable is not None:
        key = "missing"
    return ModelFacts(
        name=deployment.name,
        provider=endpoint.name,
        model=settings.model,
        key=key,
        key_variable=endpoint.key_variable if key == "missing" else None,
        pulled=_pulled(deployment),
        input_price=rates.input if rates else None,
        output_price=rates.output if rates else None,
        context=settings.context or _known_context(deployment),
        max_concurrency=settings.max_concurrency,
    )


def _pulled(deployment: Deployment) -> bool | None:
    if deployment.endpoint.kind != "llamacpp" or deployment.settings.model not in KNOWN:
        return None
    try:
        model_path(deployment.settings.model)
    except ConfigurationError:
        return False
    return True


def _known_context(deployment: Deployment) -> int | None:
    """Return the context of a model as its LangChain package knows it, in tokens.

    The package's list of profiles is read from its file: to import the package would take a second.
    """
    kind = deployment.endpoint.kind
    if kind == "llamacpp":
        return LOCAL_CONTEXT
    package = find_spec(f"langchain_{kind.replace('-', '_')}")
    for folder in (package.submodule_search_locations or ()) if package else ():
        profiles = Path(folder) / "data" / "_profiles.py"
        if profiles.is_file():
            profile = runpy.run_path(str(profiles)).get("_PROFILES", {}).get(deployment.settings.model, {})
            return profile.get("max_input_tokens") or None
    return None


def _print_table(facts: list[ModelFacts], loaded: Loaded) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("name", "answered by", "key"):
        table.add_column(title, overflow="fold", no_wrap=title == "key")
    for title in ("$/M in", "$/M out", "context", "slots"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in facts:
        table.add_row(
            each.name,
            f"{each.provider}/{each.model}",
            "no need" if each.key == "not needed" else each.key,
            _price(each.input_price),
            _price(each.output_price),
            f"{each.context // 1000:,}k" if each.context else "unknown",
            f"{each.max_concurrency:,}",
        )
    console = Console(markup=False, highlight=False, emoji=False)
    # In a file or a pipe a line of the list stays a line.
    console.print(table, width=None if console.is_terminal else WIDE)
    for line in _remedies(facts):
        console.print(line, soft_wrap=True)
    console.print(
        f"Configuration: {loaded.file or 'as built in; a file llm-gateway.toml here would change it'}.", soft_wrap=True
    )


def _remedies(facts: list[ModelFacts]) -> list[str]:
    """Return what would make more models usable."""
    missing: dict[str, list[str]] = {}
    for each in facts:
        if each.key_variable:
            missing.setdefault(each.key_variable, []).append(each.name)
    lines = [f"Set {variable} for {', '.join(names)}." for variable, names in missing.items()]
    unpulled = dict.fromkeys(each.model for each in facts if each.pulled is False)
    return lines + [f"Run `llm-gateway pull {model}` for {model}." for model in unpulled]


def _price(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:,.3f}".rstrip("0").rstrip(".")
