"""Unix sockets of the host in the guest: whoever connects to one here is connected to the host's.

The host has a stream waiting for each (Port.SOCKETS, HOST_SOCKET in): so it dials, as always, and nothing listens there
for a guest. A client takes the waiting stream: CONNECTED goes out on it, then its bytes go both ways, and the host
sends another one to wait.
"""

import asyncio
import logging
import os
import socket
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError, SetupError
from kata_common.contract import CONNECTED, HOST_SOCKET
from kata_common.relay import join

__all__ = ["DIRECTORY", "HostSocket", "SocketRoom"]

_log = logging.getLogger("kata.agent")

DIRECTORY: Final = "/run/kata-containers/sockets"
# Streams that wait for a client, and clients, of one socket.
MAX_WAITING: Final = 4
MAX_CLIENTS: Final = 256
# Seconds for the host to say which socket a stream is for, and for a client to get one.
HELLO_WITHIN: Final = 5.0
STREAM_WITHIN: Final = 10.0


class HostSocket(NamedTuple):
    """One of the host's, by the number that the host gave it; here it is at `path`, with the host's mode and owner."""

    number: int
    path: str
    mode: int
    uid: int
    gid: int


class SocketRoom:
    """Those of the sandbox. Give `accepted` to an Acceptor."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[socket.socket]] = defaultdict(deque)
        self._arrived: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._listening: dict[str, list[asyncio.Task[None]]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()

    def accepted(self, stream: socket.socket, _: int) -> None:
        self._start(self._greet(stream))

    def _start(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _greet(self, stream: socket.socket) -> None:
        said = b""
        try:
            async with asyncio.timeout(HELLO_WITHIN):
                while len(said) < HOST_SOCKET.size:
                    chunk = await asyncio.get_running_loop().sock_recv(stream, HOST_SOCKET.size - len(said))
                    if not chunk:
                        raise ConnectionResetError
                    said += chunk
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):  # TimeoutError is one
                return
            raise
        (number,) = HOST_SOCKET.unpack(said)
        if len(self._waiting[number]) >= MAX_WAITING:
            stream.close()
            return
        self._waiting[number].append(stream)
        self._arrived[number].set()

    def open(self, owner: str, sockets: Iterable[HostSocket]) -> None:
        """Listen for clients of these, until `owner` has them shut. Raises InvalidError, SetupError."""
        listeners: list[tuple[HostSocket, socket.socket]] = []
        try:
            for wanted in sockets:
                listeners.append((wanted, _listen(wanted)))
        except BaseException:
            for _, listener in listeners:
                listener.close()
            raise
        for wanted, listener in listeners:
            self._listening[owner].append(self._start(self._serve(wanted, listener)))

    def shut(self, owner: str) -> None:
        """Hang up on who is connected to its sockets, and listen no more."""
        for task in self._listening.pop(owner, ()):
            task.cancel()

    async def _serve(self, wanted: HostSocket, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        clients: set[asyncio.Task[None]] = set()
        try:
            with listener:
                while True:
                    client, _ = await loop.sock_accept(listener)
                    if len(clients) >= MAX_CLIENTS:
                        client.close()
                        continue
                    task = loop.create_task(self._carry(client, wanted.number))
                    clients.add(task)
                    task.add_done_callback(clients.discard)
        finally:
            for task in clients:
                task.cancel()
            with suppress(OSError):
                os.unlink(wanted.path)  # noqa: PTH108 - of a socket in /run, which does not block
            for stream in self._waiting.pop(wanted.number, ()):
                stream.close()
            self._arrived.pop(wanted.number, None)

    async def _carry(self, client: socket.socket, number: int) -> None:
        with client:
            try:
                async with asyncio.timeout(STREAM_WITHIN):
                    stream = await self._take(number)
            except TimeoutError:
                _log.warning("nobody at the host answers for socket %d", number)
                return
            await join(client, stream)

    async def _take(self, number: int) -> socket.socket:
        """A stream that waits, and now knows that it is wanted."""
        loop = asyncio.get_running_loop()
        while True:
            while self._waiting[number]:
                stream = self._waiting[number].popleft()
                try:
                    await loop.sock_sendall(stream, CONNECTED)
                except OSError:  # its host has gone meanwhile
                    stream.close()
                    continue
                return stream
            self._arrived[number].clear()
            await self._arrived[number].wait()

    def close(self) -> None:
        """End all of it."""
        for task in self._tasks:
            task.cancel()
        for streams in self._waiting.values():
            for stream in streams:
                stream.close()


def _listen(wanted: HostSocket) -> socket.socket:
    if not wanted.path.startswith(f"{DIRECTORY}/") or "/" in wanted.path.removeprefix(f"{DIRECTORY}/"):
        raise InvalidError(f"a socket of the host at {wanted.path[:80]!r} is not in {DIRECTORY}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        Path(DIRECTORY).mkdir(mode=0o711, parents=True, exist_ok=True)
        listener.bind(wanted.path)
        Path(wanted.path).chmod(wanted.mode & 0o777)
        os.chown(wanted.path, wanted.uid, wanted.gid)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise SetupError(f"can't listen for the host's socket at {wanted.path}: {error.strerror}") from error
    return listener
