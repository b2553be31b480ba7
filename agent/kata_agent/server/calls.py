"""Calls without gRPC: one on each connection (kata_common.contract, Port.CALLS).

A clone that has just woken runs everything for the first time as far as its emulator knows, and gRPC is a lot. The
methods are the same, and so is the funnel around them.
"""

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from kata_agent.server.funnel import HOST, Plain
from kata_common.contract import CALL_REPLY, CALL_REQUEST, MAX_CALL

__all__ = ["CallServer"]

MAX_CALLS: Final = 1024
# Seconds for a request to arrive, and for answers to leave before the power goes.
PATIENCE: Final = 30.0
FAREWELL: Final = 1.0
_INTERNAL: Final = 13
_UNIMPLEMENTED: Final = 12


class _Aborted(Exception):
    def __init__(self, code: int, text: str, marker: str) -> None:
        super().__init__(text)
        self.code = code
        self.marker = marker


class _Context:
    """What the funnel wants of gRPC's context. Who gets as far as this is the host (Acceptor)."""

    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def peer(self) -> str:
        return HOST

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    async def abort(self, code: Any, text: str, trailing: tuple[tuple[str, str], ...]) -> NoReturn:  # noqa: ANN401
        raise _Aborted(code.value[0], text, trailing[0][1] if trailing else "")


class CallServer:
    """Give `accepted` to an Acceptor."""

    def __init__(self, methods: Mapping[str, Plain]) -> None:
        self._methods = methods
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def accepted(self, stream: socket.socket, _: int) -> None:
        if len(self._tasks) >= MAX_CALLS:
            stream.close()
            return
        task = self._loop.create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drained(self) -> None:
        """Return when every answer is on its way, or soon."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FAREWELL)

    def close(self) -> None:
        """Cancel all calls."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, stream: socket.socket) -> None:
        with stream, suppress(OSError):
            async with asyncio.timeout(PATIENCE):
                request = await self._read(stream)
            if request is None:
                return
            answering = self._loop.create_task(self._answer(*request))
            # The host says no more; what ends is its patience.
            leaving = self._loop.create_task(self._loop.sock_recv(stream, 1))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    await self._loop.sock_sendall(stream, answering.result())
            finally:
                answering.cancel()
                leaving.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _read(self, stream: socket.socket) -> tuple[str, list[tuple[str, str]], bytes] | None:
        """Name, metadata and message; None where there is no whole request."""
        data = bytearray()
        total = CALL_REQUEST.size
        while len(data) < total:
            chunk = await self._loop.sock_recv(stream, 65536)
            if not chunk:
                return None
            data += chunk
            if total == CALL_REQUEST.size and len(data) >= total:
                size, name, metadata = CALL_REQUEST.unpack_from(data)
                if size > MAX_CALL:
                    return None
                total += size + name + metadata
        at = CALL_REQUEST.size
        words = bytes(data[at + name : at + name + metadata]).decode("utf-8", "replace").split("\0")
        pairs = list(zip(words[::2], words[1::2], strict=False))
        return bytes(data[at : at + name]).decode("utf-8", "replace"), pairs, bytes(data[at + name + metadata : total])

    async def _answer(self, name: str, metadata: list[tuple[str, str]], message: bytes) -> bytes:
        method = self._methods.get(name)
        if method is None:
            return _reply(_UNIMPLEMENTED, f"\0there is no call {name[:64]}".encode())
        try:
            answer = await method.answer(method.parse(message), _Context(metadata))
            return _reply(0, method.write(answer))
        except _Aborted as end:
            return _reply(end.code, f"{end.marker}\0{end}".encode())
        except Exception as error:  # what can't be parsed
            return _reply(_INTERNAL, f"\0agent: {type(error).__name__}: {error}".encode())


def _reply(code: int, data: bytes) -> bytes:
    return CALL_REPLY.pack(len(data), code) + data
