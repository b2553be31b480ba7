"""The pod's localhost leads to the guest's: `kubectl port-forward`.

containerd enters the pod's network namespace and dials localhost there, where nothing of the guest listens. The kernel
gives such connections to a listener of ours (`lookup`); each is carried by vsock to the agent, which dials the guest's
own localhost. Connections to the pod's addresses are not touched.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from kata_common.contract import CONNECTED, LOCALHOST_PORT, Port
from kata_runtime.errors import HostError
from kata_runtime.guest.relay import carry
from kata_runtime.guest.transport import Transport
from kata_runtime.sandbox.network.lookup import steer_localhost
from kata_runtime.sandbox.network.namespace import Namespace
from kata_telemetry.span import Site

__all__ = ["Forwarder", "localhost_forwarded"]

_log = logging.getLogger("kata.network")
_trace = Site(package="virtcontainers", subsystem="network")

# As many as the agent carries.
_MAX_CONNECTIONS = 256
# Seconds for the agent's connect.
_TIMEOUT = 15.0
# More of them would fill the trace.
_MAX_SPANS = 32


@asynccontextmanager
async def localhost_forwarded(namespace: Namespace, transport: Transport) -> AsyncIterator[None]:
    """Let connections to the namespace's localhost reach the guest's for the block.

    Where the kernel can't do that, a warning says so: only port-forwarding needs it.
    """
    try:
        listener = await namespace.run(_listen)
    except OSError as error:
        _log.warning("no port-forwarding to the pod: %s", error.strerror)
        yield
        return
    with listener:
        try:
            link = steer_localhost(namespace.fd, listener)
        except HostError as error:
            _log.warning("no port-forwarding to the pod: %s", error)
            yield
            return
        serving = asyncio.create_task(Forwarder(transport).serve(listener, _dialed), name="port-forwarding")
        try:
            yield
        finally:
            os.close(link)
            serving.cancel()
            await asyncio.wait((serving,))


def _dialed(client: socket.socket) -> int | None:
    """The port that was dialed at localhost; None for one of the listener's own, at an address of the pod."""
    host, port = client.getsockname()[:2]
    return port if host == "::1" or host.removeprefix("::ffff:").startswith("127.") else None


def _listen() -> socket.socket:
    """A listener on any port, for both families where the kernel has both."""
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:  # ipv6.disable=1
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", 0))
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


class Forwarder:
    """Carries connections to the guest's localhost."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._spans = 0

    async def serve(self, listener: socket.socket, port_of: Callable[[socket.socket], int | None]) -> None:
        """Take connections until cancelled; `port_of` says to which port of the guest, None refuses one."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(_MAX_CONNECTIONS)
        async with asyncio.TaskGroup() as connections:
            while True:
                await slots.acquire()
                client, _ = await loop.sock_accept(listener)
                task = connections.create_task(self._carry(client, port_of(client)))
                task.add_done_callback(lambda _: slots.release())

    async def _carry(self, client: socket.socket, port: int | None) -> None:
        if port is None:
            client.close()
            return
        # Until the guest has taken it an end is a refusal, not the end of the data.
        _linger(client, reset=True)

        async def dial() -> socket.socket:
            stream = await self._dial(port)
            _linger(client, reset=False)
            return stream

        await carry(client, dial)

    async def _dial(self, port: int) -> socket.socket:
        self._spans += 1
        if self._spans > _MAX_SPANS:
            return await self._connect(port)
        with _trace.span("portForward", port=port):
            return await self._connect(port)

    async def _connect(self, port: int) -> socket.socket:
        stream, _ = await self._transport.connect(Port.LOCALHOST)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_TIMEOUT):
                await loop.sock_sendall(stream, LOCALHOST_PORT.pack(port))
                answer = await loop.sock_recv(stream, 1)
            if answer != CONNECTED:
                raise ConnectionRefusedError(f"nobody listens on the guest's localhost:{port}")
        except BaseException:
            stream.close()
            raise
        return stream


def _linger(stream: socket.socket, *, reset: bool) -> None:
    """With `reset` the next close resets the connection (socket(7), SO_LINGER of zero seconds)."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
