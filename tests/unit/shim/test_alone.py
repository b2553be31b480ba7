"""Who is connected to a ttrpc server, and a shim that nobody is connected to."""

import asyncio
import socket

import pytest

from kata_runtime.shim import daemon
from kata_runtime.shim.ttrpc.server import Server


async def gone(server: Server, client: socket.socket) -> None:
    """Close a client's end, and wait until the server knows."""
    (connection,) = server.connections
    client.close()
    await connection.lost.wait()


async def connect(server: Server) -> socket.socket:
    ours, theirs = socket.socketpair()
    await server.adopt(theirs)
    return ours


async def test_alone() -> None:
    async with Server([]) as server:
        await server.alone(0)
        client = await connect(server)
        await server.visited()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await server.alone(0)
        waiting = asyncio.create_task(server.alone(0.01))
        await gone(server, client)
        await waiting


class Service:
    needed = True


async def test_a_shim_ends_only_where_nobody_can_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_ALONE", 0.01)
    service, stop = Service(), asyncio.Event()
    async with Server([]) as server:
        watch = asyncio.create_task(daemon._abandoned(server, service, stop))  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stop.wait()
        # Somebody comes, takes the last container, and goes.
        client = await connect(server)
        service.needed = False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stop.wait()
        await gone(server, client)
        await stop.wait()
        await watch
