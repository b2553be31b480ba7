"""The stdio of one process: descriptors on the host, vsock streams to the guest, and what copies between them."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kata_common.contract import Port
from kata_runtime.guest.dial import dial
from kata_runtime.guest.stdio import copy_in, copy_out
from kata_runtime.guest.transport import Transport
from kata_telemetry.span import Site

__all__ = ["Stdio", "Streams", "own_descriptor"]

_trace = Site(package="virtcontainers", subsystem="container")


# `ExitStack.callback`, or its like.
Closer = Callable[[Callable[[int], None], int], object]


@dataclass(frozen=True)
class Stdio:
    """The host's descriptors of a process's stdio; None where it has none. A terminal has no stderr."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


def own_descriptor(descriptor: int, owner: Closer, *, writing: bool) -> int:
    """The same pipe or terminal by a descriptor of our own, which does not block and whose flags are nobody else's.

    What has a position (a file) or can't be opened again (a socket) is used as it came.
    """
    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
        return descriptor
    flags = (os.O_WRONLY if writing else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return descriptor
    owner(os.close, own)
    return own


class Streams:
    """The vsock streams of one process and the tasks that serve them."""

    def __init__(self, stdio: Stdio) -> None:
        self._stdio = stdio
        self._sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, int] = {}
        self._outputs: list[asyncio.Task[int]] = []
        self._input: asyncio.Task[int] | None = None

    async def connect(self, transport: Transport) -> None:
        """Open the streams, all at once; their port numbers go into the agent's call.

        Raises:
            AgentError: the agent does not take them.
        """
        wanted = [name for name in ("stdin", "stdout", "stderr") if getattr(self._stdio, name) is not None]
        with _trace.span("connectStdio"):
            opened = await asyncio.gather(*(self._open(transport, name) for name in wanted), return_exceptions=True)
        for failure in filter(None, opened):
            raise failure

    async def _open(self, transport: Transport, name: str) -> None:
        self._sockets[name], self.ports[f"{name}_port"] = await dial(transport, Port.STDIO, name)

    def serve(self, about: Mapping[str, Any]) -> None:
        """Begin to copy; `about` are attributes of the spans."""
        for name in ("stdout", "stderr"):
            fd = getattr(self._stdio, name)
            if fd is not None:
                self._outputs.append(asyncio.create_task(copy_out(self._sockets.pop(name), fd, name, about)))
        if self._stdio.stdin is not None:
            self._input = asyncio.create_task(copy_in(self._stdio.stdin, self._sockets.pop("stdin"), about))

    async def drain(self) -> None:
        """Wait until all output has been delivered; input that nobody reads any more is let go."""
        if self._outputs:
            await asyncio.wait(self._outputs)
        await self.close()

    async def close(self) -> None:
        """Stop copying; nothing touches the descriptors afterwards (but see `copy_in`). Safe to repeat."""
        tasks = [*self._outputs, *([self._input] if self._input else [])]
        for task in tasks:
            task.cancel()
        for unused in self._sockets.values():
            unused.close()
        self._sockets.clear()
        if tasks:
            await asyncio.wait(tasks)
