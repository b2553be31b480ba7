"""The event loop of a process: made when it is wanted, or there already, where something was prepared in it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["beside", "prepare", "run"]

_T = TypeVar("_T")
_prepared: asyncio.AbstractEventLoop | None = None


def prepare() -> asyncio.AbstractEventLoop:
    """Make the loop that `run` uses from now on, so that what was opened in it can go on."""
    global _prepared  # noqa: PLW0603 - a process has one
    _prepared = asyncio.new_event_loop()
    return _prepared


def run(main: Coroutine[object, object, _T]) -> _T:
    """As asyncio.run, in the prepared loop if there is one, which stays open."""
    if _prepared is None:
        return asyncio.run(main)
    return _prepared.run_until_complete(main)


@asynccontextmanager
async def beside(works: Iterable[tuple[str, Coroutine[object, object, None]]]) -> AsyncIterator[None]:
    """Tasks, with their names, that run for the block; when it ends they are cancelled, and have ended."""
    tasks = [asyncio.create_task(work, name=name) for name, work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
