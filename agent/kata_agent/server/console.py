"""The debug console: a shell of the guest's own, as root, on a terminal, for each connection of the host.

Off unless the host asks for it: by CreateSandbox, or by Kata's words on the kernel's command line
(`agent.debug_console`, `agent.debug_console_vport`), which hold from the agent's start on.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kata_agent.process.reaper import Reaper
from kata_agent.server.listeners import Acceptor, Endpoints
from kata_common.contract import Port

__all__ = ["Console"]

_log = logging.getLogger("kata.agent")

# busybox's setsid makes the terminal the session's.
SHELL: Final = ("setsid", "-c", "/bin/sh", "-l")
MAX_CONSOLES: Final = 16
CHUNK: Final = 16 << 10


class Console:
    """Listens when it is opened, until it is closed."""

    def __init__(self, endpoints: Endpoints, reaper: Reaper) -> None:
        self._endpoints = endpoints
        self._reaper = reaper
        self._acceptors: dict[int, Acceptor] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, port: int = Port.CONSOLE) -> None:
        """Serve at `port` from now on. Raises OSError."""
        if port not in self._acceptors:
            self._acceptors[port] = Acceptor(self._endpoints, port, self.accepted)
            _log.warning("the debug console is open on port %d", port)

    def accepted(self, stream: socket.socket, _: int) -> None:
        if len(self._tasks) >= MAX_CONSOLES:
            stream.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """No more, and who is there is cut off."""
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._acceptors.clear()
        for task in self._tasks:
            task.cancel()

    async def _serve(self, stream: socket.socket) -> None:
        with stream:
            master, slave = os.openpty()
            try:
                environment = {**os.environ, "TERM": "linux", "HOME": "/root", "PS1": "guest# "}
                shell = self._reaper.spawn(SHELL, stdio=(slave, slave, slave), env=environment)
            except OSError as error:
                _log.warning("the debug console has no shell: %s", error.strerror)
                os.close(master)
                return
            finally:
                os.close(slave)
            os.set_blocking(master, False)
            terminal = _Terminal(master)
            tasks = [asyncio.create_task(part) for part in (_in(stream, terminal), _out(terminal, stream))]
            try:
                # The shell's end is the end of its output; the host may end its input long before.
                await tasks[1]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                # Its terminal hangs up, which ends what runs there; the shell itself may be deaf.
                os.close(master)
                shell.signal(signal.SIGKILL)


class _Terminal:
    """The master's side of a terminal, in the event loop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Some bytes; none at the end."""
        while True:
            try:
                return os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
            except OSError:  # EIO: nobody has the other end
                return b""

    async def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)

    async def _until(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(self._descriptor, _set, ready)
        try:
            await ready
        finally:
            remove(self._descriptor)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _in(stream: socket.socket, terminal: _Terminal) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(stream, CHUNK):
            await terminal.write(data)
        # End of file, as a person says it.
        await terminal.write(b"\x04")


async def _out(terminal: _Terminal, stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await terminal.read():
            await loop.sock_sendall(stream, data)
