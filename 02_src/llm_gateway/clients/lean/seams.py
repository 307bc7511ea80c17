"""Whether the LangChain that is installed still has the places where this transport is put under it."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Mapping, Sequence

log = logging.getLogger("llm_gateway")

Seam = Mapping[str, Sequence[str]]
"""The names of methods, and the parameters that each must have."""


def missing(cls: type, seam: Seam, fields: Sequence[str] = ()) -> str | None:
    """Return what a class of LangChain lacks of its seam, None if nothing."""
    known = {*getattr(cls, "model_fields", {}), *getattr(cls, "__private_attributes__", {})}
    for field in fields:
        if field not in known:
            return f"{cls.__name__}.{field}"
    for name, wanted in seam.items():
        method = getattr(cls, name, None)
        if not callable(method):
            return f"{cls.__name__}.{name}"
        taken = inspect.signature(method).parameters
        anything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        lacking = [each for each in wanted if each not in taken and not anything]
        if lacking:
            return f"{cls.__name__}.{name}({lacking[0]})"
    return None


def fits(cls: type, seam: Seam, fields: Sequence[str] = ()) -> bool:
    """Tell whether a class of LangChain has its seam; if not, say so once in this process."""
    lacking = missing(cls, seam, fields)
    if lacking:
        _warn(lacking)
    return lacking is None


@functools.cache
def _warn(lacking: str) -> None:
    log.warning(
        "The lean transport does not fit the LangChain packages that are installed: they have no %s. Calls go through "
        "the provider's SDK, as with transport = 'sdk'.",
        lacking,
    )
