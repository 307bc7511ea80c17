"""Options that commands of several families take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration, a TOML file. Default: llm-gateway.toml in the working directory, if there is one.",
        show_default=False,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

ModelOfAll = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Ask this model, whatever the lines say. Default: what each line names, else the one model that the "
        "configuration file has a section for.",
        show_default=False,
    ),
]

Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write one page with plots.", show_default=False)
]
