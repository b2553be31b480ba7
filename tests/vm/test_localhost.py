"""The pod's localhost, without a guest: the kernel's part, and the shim's and the agent's ends of a connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kata_agent.server.listeners import Acceptor, UnixEndpoints
from kata_agent.server.ports import PortServer
from kata_common.contract import Port
from kata_runtime.sandbox.network.localhost import localhost_forwarded
from kata_runtime.sandbox.network.namespace import Namespace
from support.fake_transport import UnixTransport
from support.netns import Netns, made

pytestmark = pytest.mark.slow


@asynccontextmanager
async def forwarded(network: Netns, directory: Path) -> AsyncIterator[None]:
    """The agent's end in this process, whose localhost is the "guest's"."""
    endpoints = UnixEndpoints(directory)
    server = PortServer()
    acceptor = Acceptor(endpoints, Port.LOCALHOST, server.accepted)
    try:
        with Namespace.at(str(network.path)) as namespace:
            async with localhost_forwarded(namespace, UnixTransport(endpoints)):
                yield
    finally:
        acceptor.close()
        server.close()


async def exchange(network: Netns, host: str, port: int, data: bytes) -> bytes:
    def talk() -> bytes:
        with network.inside(lambda: socket.create_connection((host, port), 30)) as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: stream.recv(1 << 16), b""))

    return await asyncio.to_thread(talk)


@asynccontextmanager
async def echo(host: str) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"=" + await reader.read())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, host, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_any_port_of_localhost_leads_there(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    with made() as (network,):
        async with echo("127.0.0.1") as port, echo("::1") as other, forwarded(network, tmp_path):
            for host in ("127.0.0.1", "::1", "127.1.2.3"):
                assert await exchange(network, host, port, data) == b"=" + data
            # It may listen on the other family only.
            assert await exchange(network, "127.0.0.1", other, b"six") == b"=six"
            many = [exchange(network, "127.0.0.1", port, b"%d" % number) for number in range(50)]
            assert await asyncio.gather(*many) == [b"=%d" % number for number in range(50)]
        # Nothing of it is left.
        with pytest.raises(ConnectionRefusedError):
            await exchange(network, "127.0.0.1", port, b"")


async def test_nobody_listens_there(tmp_path: Path) -> None:
    with made() as (network,):
        async with echo("127.0.0.1") as port:
            pass
        async with forwarded(network, tmp_path):
            with pytest.raises(ConnectionResetError):
                await exchange(network, "127.0.0.1", port, b"")


async def test_other_addresses_stay_the_namespaces_own(tmp_path: Path) -> None:
    with made() as (network,):
        network.ip("address add 192.0.2.1/32 dev lo")
        with network.inside(lambda: socket.create_server(("0.0.0.0", 0))) as listener:
            port = listener.getsockname()[1]
            async with forwarded(network, tmp_path):
                with network.inside(lambda: socket.create_connection(("192.0.2.1", port))), listener.accept()[0]:
                    pass
                # Its localhost is the guest's, where nobody listens.
                with pytest.raises(ConnectionResetError):
                    await exchange(network, "127.0.0.1", port, b"")
