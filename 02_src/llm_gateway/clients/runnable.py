"""A batch as LangChain runs it: `abatch` over a Runnable that makes one call for each item.

Imported when the first batch leaves, since langchain-core takes a while to import.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from langchain_core.runnables import Runnable, RunnableConfig

T = TypeVar("T")


class CallEach(Runnable[T, None]):
    """Awaits one function for each item of a batch; all items of a batch run at the same time.

    The function answers its item itself, so a slow item delays none of the others.
    """

    def __init__(self, call: Callable[[T], Awaitable[None]]) -> None:
        self._call = call

    def invoke(self, input: T, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002, ARG002
        """Not available: a gateway's calls live on its event loop."""
        raise TypeError("a gateway's batch runs on its event loop; use ainvoke or abatch")

    async def ainvoke(self, input: T, config: RunnableConfig | None = None, **kwargs: Any) -> None:  # noqa: A002, ARG002
        """Make the call of one item."""
        await self._call(input)

    async def abatch(
        self,
        inputs: list[T],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[None]:
        """Make the calls of all items. The only item of a batch needs no task of its own, and begins at once."""
        if len(inputs) != 1:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        try:
            await self._call(inputs[0])
        except Exception as error:
            if not return_exceptions:
                raise
            return cast("list[None]", [error])  # as LangChain's own says it
        return [None]
