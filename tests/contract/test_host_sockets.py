"""Unix sockets of the host in the guest, without a guest: the runtime's and the agent's ends of a connection."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kata_agent.errors import InvalidError
from kata_agent.process import sockets
from kata_agent.server.listeners import Acceptor, UnixEndpoints
from kata_common.contract import Port
from kata_runtime.sandbox.sockets import HostSocket, forwarded
from support.fake_transport import UnixTransport

pytestmark = pytest.mark.slow


@asynccontextmanager
async def upper(path: Path) -> AsyncIterator[None]:
    """A server of the host's: it answers a whole request in capitals."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path) as server:
        yield
        server.close()
    path.unlink(missing_ok=True)


@asynccontextmanager
async def guest(directory: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The agent's end in this process; where clients find the host's socket."""
    monkeypatch.setattr(sockets, "DIRECTORY", str(directory / "guest"))
    endpoints, room = UnixEndpoints(directory), sockets.SocketRoom()
    descriptor = os.open(host, os.O_PATH)
    async with AsyncExitStack() as stack:
        stack.callback(os.close, descriptor)
        stack.callback(room.close)
        stack.callback(Acceptor(endpoints, Port.SOCKETS, room.accepted).close)
        place = directory / "guest/7"
        wanted = sockets.HostSocket(7, str(place), 0o640, os.getuid(), os.getgid())
        room.open("c1", [wanted])
        async with forwarded([HostSocket(7, descriptor, str(host))], UnixTransport(endpoints)):
            yield place
        room.shut("c1")
        await asyncio.sleep(0)
        assert not place.exists()


async def ask(place: Path, data: bytes) -> bytes:
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


async def test_who_connects_reaches_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"abc" * 100_000
    async with upper(tmp_path / "host"), guest(tmp_path, tmp_path / "host", monkeypatch) as place:
        assert place.stat().st_mode & 0o777 == 0o640
        assert await ask(place, data) == data.upper()
        many = [ask(place, b"client %d" % number) for number in range(40)]
        assert await asyncio.gather(*many) == [b"CLIENT %d" % number for number in range(40)]
        # Another file gets the name: still the socket that was mounted.
        (tmp_path / "host").rename(tmp_path / "renamed")
        assert await ask(place, b"same") == b"SAME"


async def test_nobody_listens_at_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "host"))
    async with guest(tmp_path, tmp_path / "host", monkeypatch) as place:
        for _ in range(3):
            assert await ask(place, b"anybody?") == b""


async def test_sockets_have_a_place_of_their_own(tmp_path: Path) -> None:
    room = sockets.SocketRoom()
    for path in ("/run/x", f"{sockets.DIRECTORY}/a/b", f"{sockets.DIRECTORY}/../x"):
        with pytest.raises(InvalidError):
            room.open("c1", [sockets.HostSocket(1, path, 0o600, 0, 0)])
