"""Where the agent listens: vsock ports in a guest, unix sockets in a test.

Only the host may talk to the agent. A workload shares the guest's kernel and can open AF_VSOCK sockets itself, so a
peer that isn't the host (HOST_CID) is turned away; for the same reason nothing listens on an abstract
unix socket.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from kata_common.contract import HOST_CID

__all__ = ["Acceptor", "Endpoints", "UnixEndpoints", "VsockEndpoints"]

VMADDR_CID_ANY: Final = 0xFFFFFFFF
BACKLOG: Final = 128


class Endpoints(Protocol):
    """Makes listeners for ports."""

    def listen(self, port: int) -> socket.socket:
        """A non-blocking listening stream socket. Raises OSError."""
        ...

    def host_port(self, address: object) -> int | None:
        """The host's port number of a peer, None for a peer that isn't the host."""
        ...

    async def dial(self, port: int) -> socket.socket:
        """A non-blocking stream to what listens on a port of the host. Raises OSError."""
        ...


class VsockEndpoints:
    """AF_VSOCK, any CID: the device may come later (hotplug into a clone)."""

    def listen(self, port: int) -> socket.socket:
        return _listen(socket.AF_VSOCK, (VMADDR_CID_ANY, port))

    def host_port(self, address: object) -> int | None:
        match address:
            case (int(cid), int(port)) if cid == HOST_CID:
                return port
        return None

    async def dial(self, port: int) -> socket.socket:
        return await _dial(socket.AF_VSOCK, (HOST_CID, port))


class UnixEndpoints:
    """Unix sockets `<directory>/<port>.sock`. A client says its port by its own address: the abstract name
    `<any>:<port>`. Port N of the host is `<directory>/host_N`, named as in hybrid vsock.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, port: int) -> Path:
        return self.directory / f"{port}.sock"

    def listen(self, port: int) -> socket.socket:
        self.path(port).unlink(missing_ok=True)
        return _listen(socket.AF_UNIX, str(self.path(port)))

    def host_port(self, address: object) -> int | None:
        name = address.decode("ascii", "replace") if isinstance(address, bytes) else ""
        found = re.fullmatch(r"\0.*:(\d+)", name)
        return int(found[1]) if found else 0

    async def dial(self, port: int) -> socket.socket:
        return await _dial(socket.AF_UNIX, str(self.directory / f"host_{port}"))


def _listen(family: int, address: str | tuple[int, int]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def _dial(family: int, address: str | tuple[int, int]) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(stream, address)
    except BaseException:
        stream.close()
        raise
    return stream


class Acceptor:
    """Accepts on one port and hands each stream of the host's (non-blocking) and its port number on."""

    def __init__(self, endpoints: Endpoints, port: int, accepted: Callable[[socket.socket, int], None]) -> None:
        """Listens at once. Raises OSError."""
        self._endpoints = endpoints
        self._accepted = accepted
        self._listener = endpoints.listen(port)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener.fileno(), self._ready)

    def _ready(self) -> None:
        while True:
            try:
                stream, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                return  # the peer is gone already, or descriptors ran out: the next one may do better
            port = self._endpoints.host_port(address)
            if port is None:
                stream.close()
                continue
            stream.setblocking(False)
            self._accepted(stream, port)

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            with suppress(OSError):
                self._listener.close()
