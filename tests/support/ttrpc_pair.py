"""A ttrpc server and a connection to it, in one process."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from kata_protos.containerd.ttrpc_pb2 import Request, Response
from kata_runtime.shim.ttrpc.client import Client
from kata_runtime.shim.ttrpc.connection import Connection
from kata_runtime.shim.ttrpc.errors import RpcError
from kata_runtime.shim.ttrpc.frames import REQUEST, Decoder, Frame, Oversized, encode
from kata_runtime.shim.ttrpc.server import Funnel, Server, span_per_call
from kata_runtime.shim.ttrpc.service import Service, bind
from support.ttrpc_echo import DESCRIPTOR, Echo

__all__ = ["Wire", "client_to", "failure_of", "recorded", "serving", "wire_to"]

DATA = Path(__file__).parent.parent / "data" / "ttrpc"


def recorded(name: str) -> list[tuple[str, Frame]]:
    """The frames in tests/data/ttrpc/: who sent each, and the frame."""
    found = []
    for line in (DATA / f"{name}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        (frame,) = Decoder().feed(bytes.fromhex(entry["data"]))
        assert isinstance(frame, Frame)
        found.append((entry["from"], frame))
    return found


async def failure_of(call: Awaitable[object]) -> RpcError:
    """How a call fails."""
    try:
        await call
    except RpcError as error:
        return error
    raise AssertionError("the call succeeded")


@asynccontextmanager
async def serving(
    echo: object | None = None, *services: Service, funnel: Funnel = span_per_call
) -> AsyncIterator[Server]:
    """A server of the echo service (and others)."""
    async with Server([bind(DESCRIPTOR, echo or Echo()), *services], funnel=funnel) as server:
        yield server


@asynccontextmanager
async def client_to(server: Server) -> AsyncIterator[Client]:
    """A client of `server`."""
    ours, theirs = socket.socketpair()
    await server.adopt(theirs)
    async with await Client.connect(ours) as client:
        yield client


class Wire:
    """The client's end of a connection as bytes and frames, for what a client of ours would never send."""

    def __init__(self, peer: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder()
        self._frames: list[Frame | Oversized] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def send(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            self.writer.write(encode(frame) if isinstance(frame, Frame) else frame)

    def call(self, stream: int, method: str, payload: bytes = b"", *, flags: int = 0, **fields: Any) -> None:
        """Send a request to the echo service, or what `fields` say."""
        request = Request(**{"service": "kata.test.Echo", "method": method, "payload": payload, **fields})
        self.send(Frame(stream, REQUEST, flags, request.SerializeToString()))

    async def frame(self) -> Frame:
        """The next frame that comes back."""
        while not self._frames:
            data = await self.reader.read(1 << 16)
            assert data, "the server closed the connection"
            self._frames.extend(self._decoder.feed(data))
        frame = self._frames.pop(0)
        assert isinstance(frame, Frame)
        return frame

    async def response(self) -> tuple[int, Response]:
        """The next response: its stream and itself."""
        frame = await self.frame()
        assert (frame.kind, frame.flags) == (2, 0)
        return frame.stream, Response.FromString(frame.data)


async def wire_to(server: Server) -> Wire:
    """A raw connection to `server`."""
    ours, theirs = socket.socketpair()
    peer = await server.adopt(theirs)
    return Wire(peer, *await asyncio.open_unix_connection(sock=ours))
