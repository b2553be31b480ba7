"""One event loop for all inputs of a target, and sockets at whose other end somebody has had his say."""

import asyncio
import atexit
import functools
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run", "talked"]

T = TypeVar("T")


class _Loop:
    """A loop that keeps what its callbacks and tasks raised, which would otherwise be a line in a log."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._note)
        self.raised: list[BaseException] = []
        atexit.register(self.loop.close)

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.raised.append(context.get("exception") or RuntimeError(context["message"]))


@functools.cache
def _loop() -> _Loop:
    return _Loop()


def run(work: Coroutine[object, object, T]) -> T:
    """What comes of it, within two seconds; what it left running is cancelled. Raises what any callback raised."""
    ours = _loop()
    ours.raised.clear()
    result = ours.loop.run_until_complete(_alone(work))
    for error in ours.raised:
        raise error
    return result


async def _alone(work: Coroutine[object, object, T]) -> T:
    try:
        async with asyncio.timeout(2):
            return await work
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def talked(data: bytes) -> socket.socket:
    """A socket whose other end has said `data` and then hung up, but still takes what is said."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ours.setblocking(False)
    theirs.setblocking(False)
    theirs.send(data)
    theirs.shutdown(socket.SHUT_WR)
    # Kept for as long as ours is: closed with bytes unread, it would reset the connection.
    _others.append(theirs)
    while len(_others) > 16:
        _others.pop(0).close()
    return ours


_others: list[socket.socket] = []
