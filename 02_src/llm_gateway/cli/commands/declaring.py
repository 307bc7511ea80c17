"""How commands are declared: their help is the docstring, with examples of their use below it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc

import typer


def flowing(text: str | None) -> str:
    """Return a docstring as help: its paragraphs without their line breaks, which typer would keep."""
    paragraphs = cleandoc(text or "").replace("`", "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def examples(*commands: str) -> str:
    """Return an epilog with a command on each line."""
    return "\n".join(("Examples:", *commands))


class Commands(typer.Typer):
    """A family of commands."""

    def __init__(
        self,
        *usage: str,
        name: str | None = None,
        help: str | None = None,  # noqa: A002 - typer's word
        no_args_is_help: bool = False,
        invoke_without_command: bool = False,
    ) -> None:
        """Declare a family; one with a name is a command itself, and `usage` shows how it is used."""
        super().__init__(
            name=name,
            help=help,
            epilog=examples(*usage) if usage else None,
            no_args_is_help=no_args_is_help,
            invoke_without_command=invoke_without_command,
            add_completion=False,
            pretty_exceptions_enable=False,  # its tracebacks show the values of variables, keys among them
            rich_markup_mode="rich",
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def told(self, *usage: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Declare a function as a command whose help is its docstring and some examples of its use."""

        def declare(function: Callable[..., None]) -> Callable[..., None]:
            return self.command(help=flowing(function.__doc__), epilog=examples(*usage))(function)

        return declare
