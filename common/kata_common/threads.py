"""Blocking calls in a thread of their own.

`asyncio.to_thread` would do, but its pool is another 20 ms of imports in an emulated guest, and a thread that has left
its namespaces must not be used again.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Cancelled, it stops waiting; the thread ends by itself."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()  # the current span

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type] # without an error there is a T

    def body() -> None:
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = context.run(work)
        except BaseException as error:
            failed = error
        with suppress(RuntimeError):  # the loop has ended before the call did
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await done
