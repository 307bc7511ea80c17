"""Writes 00_docs/reference from the code: `python 02_src/tools/reference.py`. A test fails where a page is stale."""

from __future__ import annotations

import ast
import enum
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import llm_gateway
from llm_gateway import config, events
from llm_gateway.errors import GatewayError
from llm_gateway.integrations.langchain import GatewayChatModel
from llm_gateway.journal.lines import JOURNALLED
from llm_gateway.mock_gateway import MockLLMGateway, RecordedCall, UnmatchedRequestError

FOLDER = Path(__file__).parents[2] / "00_docs" / "reference"
HEAD = "<!-- Written by 02_src/tools/reference.py from the code. Change the docstrings, then run it again. -->\n"
HELP_WIDTH = 100
COMMANDS = (
    "", "run", "worker", "jobs", "jobs show", "jobs cancel", "jobs export", "plan", "ask", "models", "pull", "report",
    "simulate", "cache",
)  # fmt: skip
BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "min_length": "at least {} long", "pattern": "`{}`"}

# --- what the source says beside a field ------------------------------------------------------------------------


def notes_of(cls: type) -> dict[str, str]:
    """Return what stands beside each field of a class: the string below it, or the comment at its end."""
    source = inspect.getsource(cls)
    lines = source.splitlines()
    notes: dict[str, str] = {}
    last: str | None = None
    for node in typing.cast("ast.ClassDef", ast.parse(source).body[0]).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                last = name
                comment = re.search(r"  # (?!noqa|type:)(.*)$", lines[(node.end_lineno or 1) - 1])
                notes[name] = comment[1] if comment else ""
            case ast.Expr(value=ast.Constant(value=str(text))) if last:
                notes[last] = inspect.cleandoc(text).replace("\n", " ")
            case _:
                last = None
    return notes


def type_of(annotation: Any) -> str:
    """Write a type as a reader of tables wants it: `int (≥ 1)`, `float or None`."""
    if annotation is type(None):
        return "None"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _bounded(type_of(arguments[0]), arguments[1:])
    if origin in {typing.Union, UnionType}:
        return " or ".join(type_of(each) for each in arguments)
    if origin is Literal:
        return " or ".join(f"`{each!r}`" for each in arguments)
    name = getattr(annotation, "__name__", str(annotation))
    if arguments and origin is not None:
        inner = ", ".join(type_of(each) for each in arguments)
        return f"{origin.__name__}[{inner}]"
    return name


def _bounded(name: str, metadata: tuple[Any, ...]) -> str:
    bounds = list(_bounds(metadata))
    return f"{name} ({', '.join(bounds)})" if bounds else name


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from _bounds(tuple(each.metadata))
            continue
        for name, words in BOUNDS.items():
            value = getattr(each, name, None)
            if value is not None:
                yield words.format(value)


def default_of(field: FieldInfo) -> str:
    """Write a default; empty where the field must be given."""
    if field.default_factory is not None:
        factory: Callable[..., Any] = field.default_factory
        return "generated" if factory.__name__ == "new_request_id" else f"`{factory()!r}`"
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, enum.Enum):
        return f"`{type(value).__name__}.{value.name}`"
    return f"`'{value}'`" if isinstance(value, Path) else f"`{value!r}`"


def field_type(field: FieldInfo) -> str:
    """Write the type of a field with the bounds that pydantic took out of its annotation."""
    return _bounded(type_of(field.annotation), tuple(field.metadata))


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def model_table(cls: type[BaseModel], head: str, prefix: str = "") -> str:
    """Return the fields of a pydantic model as a table."""
    notes = notes_of(cls)
    return table(
        (head, "type", "default", "meaning"),
        (
            (f"`{prefix}{name}`", field_type(field), default_of(field), notes.get(name, ""))
            for name, field in cls.model_fields.items()
            if not issubclass(cls, GatewayChatModel) or name in cls.__annotations__  # LangChain documents its own
        ),
    )


# --- pages ------------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Return every public name: signature, docstring, fields."""
    shown = [*sorted(set(llm_gateway.__all__) - {MockLLMGateway.__name__}), MockLLMGateway.__name__]
    named = {name: getattr(llm_gateway, name, MockLLMGateway) for name in shown}
    classes = [each for each in named.values() if isinstance(each, type)]
    plain = [cls for cls in classes if not issubclass(cls, GatewayError)]
    errors = ", ".join(f"`{cls.__name__}`" for cls in classes if issubclass(cls, GatewayError))
    parts = [HEAD, "# Names of `llm_gateway`\n"]
    parts += [_class_entry(cls) for cls in [*plain, RecordedCall, GatewayChatModel]]
    parts += [
        f"## {name}\n\n{' or '.join(f'`{each.__name__}`' for each in typing.get_args(union))}\n"
        for name, union in named.items()
        if isinstance(union, UnionType)
    ]
    parts.append(f"## Errors\n\n{errors}: see [errors.md](errors.md).\n")
    return "\n".join(parts)


def _class_entry(cls: type) -> str:
    parts = [f"## {cls.__name__}\n", f"`from {_home(cls)} import {cls.__name__}`\n", f"{_doc(cls)}\n"]
    if issubclass(cls, BaseModel):
        parts.append(model_table(cls, "field"))
    elif issubclass(cls, enum.Enum):
        notes = notes_of(cls)
        rows = ((f"`{member.name}`", f"`{member.value!r}`", notes.get(member.name, "")) for member in cls)
        parts.append(table(("member", "value", "meaning"), rows))
    elif is_dataclass(cls):
        parts.append(_dataclass_table(cls))
    else:
        parts.append(f"```text\n{_signature(cls.__name__, cls.__init__)}\n```\n")
    parts += [_member(name, member) for name, member in _members(cls)]
    return "\n".join(parts)


def _home(cls: type) -> str:
    if hasattr(llm_gateway, cls.__name__):
        return "llm_gateway"
    parts = cls.__module__.split(".")
    return ".".join(parts[: 3 if parts[1] == "integrations" else 2])


def _dataclass_table(cls: type) -> str:
    notes = notes_of(cls)
    own = [each for each in fields(cls) if not each.name.startswith("_")]
    return table(("field", "type", "meaning"), ((f"`{f.name}`", f"`{f.type}`", notes.get(f.name, "")) for f in own))


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class adds to those which are documented already."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("llm_gateway")]
    if cls is MockLLMGateway:
        ours = [base for base in ours if base is not llm_gateway.LLMGateway]
    for base in ours:
        for name, member in vars(base).items():
            if name.startswith("_") or getattr(member, "__module__", "llm_gateway").partition(".")[0] != "llm_gateway":
                continue  # the latter are what pydantic puts into its classes
            if inspect.isfunction(member) or isinstance(member, property):
                yield name, member


def _member(name: str, member: Any) -> str:
    if isinstance(member, property):
        returns = inspect.signature(typing.cast("Callable[..., Any]", member.fget)).return_annotation
        return f"### `{name}`\n\n```text\n{name}: {returns}\n```\n\n{_doc(member.fget)}\n"
    prefix = "async " if inspect.iscoroutinefunction(member) else ""
    return f"### `{name}()`\n\n```text\n{prefix}{_signature(name, member)}\n```\n\n{_doc(member)}\n"


def _signature(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.name != "self"]
    text = str(signature.replace(parameters=own)).replace("'", "").removesuffix(" -> None")
    if len(name) + len(text) <= HELP_WIDTH:
        return f"{name}{text}"
    arguments = "".join(f"    {line},\n" if line != "*" else "    *,\n" for line in _arguments(own))
    returns = text.rpartition(") -> ")[2] if ") -> " in text else ""
    return f"{name}(\n{arguments})" + (f" -> {returns}" if returns else "")


def _arguments(parameters: list[inspect.Parameter]) -> Iterator[str]:
    starred = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield str(each).replace("'", "")


def _doc(thing: Any) -> str:
    """Return a docstring as Markdown; where columns are aligned, as they are."""
    text = inspect.getdoc(thing) or ""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        f"```text\n{each}\n```" if re.search(r"\S {3,}\S", each) else each.replace("\n", " ") for each in paragraphs
    )


def configuration_page() -> str:
    """Return every key of the configuration, and the models that are built in."""
    sections: list[tuple[str, type[BaseModel], str]] = [
        ("Top level", config.GatewayConfig, ""),
        ("`[providers.NAME]`", config.ProviderSettings, ""),
        ("`[models.NAME]`", config.ModelSettings, ""),
        ("`[[models.NAME.deployments]]`", config.FurtherDeployment, ""),
        ("`[models.NAME.price]`", config.PriceSettings, ""),
        ("`[models.NAME.embedding]`", config.EmbeddingSettings, ""),
        ("`[models.NAME.limits]` and `[providers.NAME.limits]`", config.LimitSettings, ""),
        ("`[limits]`", config.SharedSettings, ""),
        ("`[budgets]`", config.BudgetSettings, ""),
        ("`[cache]`", config.CacheSettings, ""),
        ("`[batching]`", config.BatchingSettings, ""),
        ("`[retry]`", config.RetrySettings, ""),
        ("`[logs]`", config.LogSettings, ""),
    ]
    parts = [HEAD, "# Configuration\n", CONFIGURATION_INTRO]
    for title, cls, prefix in sections:
        parts += [f"## {title}\n", f"{_doc(cls)}\n", model_table(cls, "key", prefix)]
    parts += ["## Models that are built in\n", _built_in_table(), "## Environment\n", _environment_table()]
    return "\n".join(parts)


CONFIGURATION_INTRO = """\
One dict, given to `LLMGateway`, or one TOML file of the same shape, given to the command line with `--config`. An
unknown key is an error that names the nearest valid one. How to use it:
[how-to/configuration.md](../how-to/configuration.md).
"""


def _built_in_table() -> str:
    rows = (
        (
            f"`{name}`",
            str(model["provider"]),
            f"`{model['model']}`",
            str(model.get("max_concurrency", config.ModelSettings.model_fields["max_concurrency"].default)),
            str(model.get("max_tokens", "")),
        )
        for name, model in config.DEFAULT_MODELS.items()
    )
    return table(("name", "provider", "the provider's own name", "`max_concurrency`", "`max_tokens`"), rows)


def _environment_table() -> str:
    kinds = config.KEY_VARIABLES.keys()
    rows = (
        (
            kind,
            f"`{config.KEY_VARIABLES[kind]}`",
            ", then ".join(f"`{name}`" for name in config.URL_VARIABLES[kind]),
            f"`{config.DEFAULT_URLS[kind]}`",
        )
        for kind in kinds
    )
    named = "\nA provider section with a name of its own reads its key from `<NAME>_API_KEY` alone, and no address.\n"
    return table(("provider", "key", "address", "default address"), rows) + named


def errors_page() -> str:
    """Return the tree of errors and what each means."""
    classes = [cls for cls in _tree(GatewayError) if _is_public(cls)]
    depth = {cls: len([base for base in cls.__mro__ if issubclass(base, GatewayError)]) - 1 for cls in classes}
    tree = "".join(f"{'  ' * depth[cls]}{cls.__name__}\n" for cls in classes)
    rows = (
        (f"`{cls.__name__}`", f"`{cls.kind}`", "yes" if cls.retryable else "no", _doc(cls).replace("\n\n", " "))
        for cls in classes
    )
    listing = table(("class", "`kind`", "`retryable`", "meaning"), rows)
    return "\n".join([HEAD, "# Errors\n", ERRORS_INTRO, f"```text\n{tree}```\n", listing])


ERRORS_INTRO = """\
`kind` is the word that statistics, the journal and result files use. `retryable` says whether the same request could
succeed later unchanged; the gateway has already repeated such a call when its caller sees the error.
"""


def _tree(cls: type[GatewayError]) -> Iterator[type[GatewayError]]:
    yield cls
    for child in sorted(cls.__subclasses__(), key=lambda each: each.__name__):
        yield from _tree(child)


def _is_public(cls: type[GatewayError]) -> bool:
    return cls.__name__ in llm_gateway.__all__ or cls is UnmatchedRequestError


def journal_page() -> str:
    """Return every line that the journal writes, with its fields."""
    parts = [HEAD, "# Lines of the journal\n", JOURNAL_INTRO]
    for cls in sorted(JOURNALLED, key=lambda each: _line_of(events, each)):
        parts += [f"## `{cls.name}`\n", f"{_doc(cls)}\n", _dataclass_table(cls)]
    return "\n".join(parts)


JOURNAL_INTRO = """\
Each line is one JSON object: `ts` (UTC, RFC 3339 with microseconds), `event` (the names below), then the fields that
have a value. Durations are seconds. `priority` and the keys of `classes` are written "high", "normal", "low"; `usage`
is written as its own fields (`input_tokens`, `output_tokens`, …). `lines_lost` stands where lines are missing, with
their number as `lines`.

`why` a batch closed: "idle", nothing more was queued; "size", it was full; "slots", it took the last free slots;
"wait", its oldest request had waited `max_wait_ms`; "drain", the gateway shut down.

How to read it: [how-to/reading-the-logs.md](../how-to/reading-the-logs.md).
"""


def _line_of(module: ModuleType, cls: type) -> int:
    return inspect.getsource(module).index(f"class {cls.__name__}(")


TELL_ALL = """
import json, sys
from llm_gateway.cli import main
told = sys.argv.pop()
for name in json.loads(told):
    sys.argv[1:] = [*name.split(), "--help"]
    try:
        main()
    except SystemExit:
        pass
    print(end="\\0")
"""


def cli_page() -> str:
    """Return the help of every command at a fixed width."""
    parts = [HEAD, "# The command line\n"]
    for name, told in zip(COMMANDS, helps_of(COMMANDS), strict=True):
        command = f"llm-gateway {name}".strip()
        parts.append(f"## `{command}`\n\n```text\n{told}\n```\n")
    return "\n".join(parts)


def helps_of(names: Sequence[str]) -> list[str]:
    """Return what each command prints for `--help`."""
    width = {"COLUMNS": str(HELP_WIDTH), "TERMINAL_WIDTH": str(HELP_WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    told = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", TELL_ALL, json.dumps(names)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env=os.environ | width | {"PYTHONIOENCODING": "utf-8"},
    )
    return ["\n".join(map(str.rstrip, each.strip("\n").splitlines())) for each in told.stdout.split("\0")[:-1]]


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "configuration.md": configuration_page,
    "cli.md": cli_page,
    "errors.md": errors_page,
    "journal.md": journal_page,
}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
