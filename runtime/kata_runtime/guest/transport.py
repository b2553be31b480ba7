"""The way to ports of the guest, whoever does vsock on this host.

`HybridTransport` speaks to our vhost-user backend (hybrid-vsock convention, `hypervisor.vsock.device`),
`KernelTransport` to the kernel's vhost-vsock. Both give connected stream sockets, and a unix socket that leads to the
agent's gRPC, because grpcio's wheels can't dial vsock.
"""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, Self

from kata_common.contract import Port
from kata_runtime.guest.relay import relay

__all__ = ["CONNECT_TIMEOUT", "HybridTransport", "KernelTransport", "Transport", "be_patient", "readable"]

# Seconds. Guests that listen answer in milliseconds; an emulated one on a busy host needs more patience.
CONNECT_TIMEOUT = 30.0

# linux/vm_sockets.h; its value is a struct timeval.
_SO_VM_SOCKETS_CONNECT_TIMEOUT = 6

# "OK 4294967295\n" has 14 bytes.
_MAX_ANSWER = 32


class Transport(Protocol):
    """What the runtime needs of a way into the guest."""

    @property
    def grpc_address(self) -> str:
        """An address for grpcio that leads to the agent."""
        ...

    @property
    def kata_address(self) -> str:
        """The agent's address as Kata writes it."""
        ...

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """A connected, non-blocking stream socket to a port of the guest, and the host's port of the connection.

        Raises:
            ConnectionRefusedError: nobody listens there, or there is no guest.
            TimeoutError: no answer in time.
        """
        ...


class HybridTransport:
    """Through the backend's sockets: `hybrid` leads to any port, `agent` to the agent's gRPC."""

    def __init__(self, hybrid: Path, agent: Path, *, timeout: float = CONNECT_TIMEOUT) -> None:
        self._hybrid = hybrid
        self._timeout = timeout
        self.grpc_address = f"unix:{agent}"
        self.kata_address = f"hvsock://{hybrid}:{Port.AGENT}"

    def __repr__(self) -> str:
        return f"<HybridTransport {self._hybrid}>"

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See Transport."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(self._timeout):
                host_port = await self._greet(stream, port)
        except TimeoutError:
            stream.close()
            raise TimeoutError(f"guest port {port} did not answer in {self._timeout:g} s") from None
        except OSError as error:
            stream.close()
            raise ConnectionRefusedError(
                f"guest port {port} can't be reached through {self._hybrid}: {error.strerror or error}"
            ) from error
        except BaseException:
            stream.close()
            raise
        return stream, host_port

    async def _greet(self, stream: socket.socket, port: int) -> int:
        loop = asyncio.get_running_loop()
        try:
            stream.connect(str(self._hybrid))
        except BlockingIOError:
            # The listener's queue is full, and nothing tells when it no longer is, except a connect that blocks.
            await asyncio.to_thread(_connect_blocking, stream, str(self._hybrid), self._timeout)
        await loop.sock_sendall(stream, b"CONNECT %d\n" % port)
        while True:
            await readable(stream)
            # What follows the line is the guest's: only look, then take the line alone.
            seen = stream.recv(_MAX_ANSWER, socket.MSG_PEEK)
            line, newline, _ = seen.partition(b"\n")
            if newline or not seen or len(seen) == _MAX_ANSWER:
                break
        word, _, number = line.partition(b" ")
        if not newline or word != b"OK" or not number.isdigit():
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, "it was refused" if not seen else "that is no vsock backend"
            )
        stream.recv(len(line) + 1)
        return int(number)


class KernelTransport:
    """By AF_VSOCK to the guest with this context id; `agent` is where the relay for grpcio listens."""

    def __init__(self, cid: int, agent: Path, *, timeout: float = CONNECT_TIMEOUT) -> None:
        self._cid = cid
        self._timeout = timeout
        self.grpc_address = f"unix:{agent}"
        self.kata_address = f"vsock://{cid}:{Port.AGENT}"

    def __repr__(self) -> str:
        return f"<KernelTransport {self._cid}>"

    @classmethod
    @asynccontextmanager
    async def opened(cls, cid: int, agent: Path, *, timeout: float = CONNECT_TIMEOUT) -> AsyncIterator[Self]:
        """A transport whose relay runs for the block; its socket is `agent`."""
        transport = cls(cid, agent, timeout=timeout)

        async def dial() -> socket.socket:
            stream, _ = await transport.connect(Port.AGENT)
            return stream

        async with relay(agent, dial):
            yield transport

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        """See Transport."""
        stream = self._socket()
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.get_running_loop().sock_connect(stream, (self._cid, port))
        except TimeoutError:
            stream.close()
            raise TimeoutError(f"guest port {port} (CID {self._cid}) did not answer in {self._timeout:g} s") from None
        except OSError as error:
            stream.close()
            # ECONNRESET: the guest has no listener; ENODEV: no guest has this id. asyncio has other words for them.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConnectionRefusedError(f"guest port {port} can't be reached (CID {self._cid}): {reason}") from error
        except BaseException:
            stream.close()
            raise
        return stream, self._host_port(stream)

    # Two seams, so that all but AF_VSOCK itself can be tested where there is none.

    def _socket(self) -> socket.socket:
        stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # The kernel's own patience is 2 s; ours ends first.
        be_patient(stream, self._timeout + 1)
        return stream

    def _host_port(self, stream: socket.socket) -> int:
        return int(stream.getsockname()[1])


def be_patient(stream: socket.socket, seconds: float) -> None:
    """Set how long the kernel waits for the answer to a connect of an AF_VSOCK socket."""
    # Python's AF_VSOCK sockets take options of 64 bits only, so it is asked as if it were another kind of socket.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(stream.fileno())) as same:
        same.setsockopt(socket.AF_VSOCK, _SO_VM_SOCKETS_CONNECT_TIMEOUT, struct.pack("@ll", int(seconds), 0))


def _connect_blocking(stream: socket.socket, path: str, timeout: float) -> None:
    stream.settimeout(timeout)
    stream.connect(path)
    stream.setblocking(False)


async def readable(stream: socket.socket) -> None:
    """Return when there is something to be read, or its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(stream, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(stream)
