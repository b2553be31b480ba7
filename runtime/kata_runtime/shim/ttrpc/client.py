"""Makes ttrpc calls: any number at once over one connection."""

import asyncio
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from kata_protos.containerd import ttrpc_pb2
from kata_runtime.shim.ttrpc import frames
from kata_runtime.shim.ttrpc.connection import Connection
from kata_runtime.shim.ttrpc.errors import ConnectionLost, DeadlineExceeded, Internal, ResourceExhausted, RpcError
from kata_runtime.shim.ttrpc.frames import Frame, Oversized
from kata_runtime.shim.ttrpc.stream import Inbox
from kata_telemetry.propagation import inject
from kata_telemetry.span import current

__all__ = ["Client", "ClientStream"]

R = TypeVar("R", bound=Message)


class Client:
    """A connection to a ttrpc server; an async context manager that ends with `close()`."""

    def __init__(self, connection: "_ClientConnection") -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, address: str | socket.socket) -> Self:
        """Connect to a unix socket: a path, `unix://` and a path, `@` and an abstract name, or a connected socket.

        Raises:
            ConnectionLost: nobody listens there.
        """
        loop = asyncio.get_running_loop()
        connection = _ClientConnection()
        try:
            if isinstance(address, socket.socket):
                await loop.create_unix_connection(lambda: connection, sock=address)
            else:
                path = address.removeprefix("unix://")
                await loop.create_unix_connection(lambda: connection, "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            raise ConnectionLost(f"no ttrpc server answers at {address}: {error.strerror or error}") from error
        return cls(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def open(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._connection.open

    async def close(self) -> None:
        """Close the connection; calls that still wait get `ConnectionLost`."""
        await self._connection.close()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response: type[R],
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> R:
        """Make a unary call. The current span goes with it (W3C Trace Context), and so does `timeout` (seconds).

        Raises:
            RpcError: the server's status, by its code.
            DeadlineExceeded: no answer within `timeout`.
            ConnectionLost: the connection ended first; whether the call was carried out is unknown.
            ResourceExhausted: the request, or its answer, is longer than a frame may be.
        """
        stream = self._start(service, method, request.SerializeToString(), 0, response, timeout, metadata)
        async with stream:
            return await stream.single()

    def stream(
        self,
        service: str,
        method: str,
        response: type[R],
        *,
        request: Message | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "ClientStream[R]":
        """Start a call that streams: with `request` only the server does, without it the client (too).

        Use it as an async context manager. Errors are those of `call`; `timeout` is for the whole of it.
        """
        payload = b"" if request is None else request.SerializeToString()
        flags = frames.REMOTE_OPEN if request is None else frames.REMOTE_CLOSED
        return self._start(service, method, payload, flags, response, timeout, metadata)

    def _start(
        self,
        service: str,
        method: str,
        payload: bytes,
        flags: int,
        response: type[R],
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> "ClientStream[R]":
        request = ttrpc_pb2.Request(service=service, method=method, payload=payload)
        if timeout is not None:
            # 0 means no limit on the wire.
            request.timeout_nano = int(timeout * 1e9) or 1
        pairs = dict(metadata or {})
        if "traceparent" not in pairs:
            pairs.update(_current())
        for key, value in pairs.items():
            request.metadata.add(key=key.lower(), value=value)
        inbox = _Answers()
        number = self._connection.begin(inbox, flags, request.SerializeToString())
        return ClientStream(self._connection, number, inbox, response, f"{service}/{method}", timeout, bool(flags & 2))


def _current() -> list[tuple[str, str]]:
    """What names the current span to others."""
    if os.environ.get("OTEL_PROPAGATORS") and current().recording:
        from kata_traces.sdk import propagators

        return propagators.outward()
    return inject()


class _Answers(Inbox):
    """What comes back on a stream; `final` is the response that ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.final: ttrpc_pb2.Response | None = None


class ClientStream(Generic[R]):
    """The client's end of a call. Leaving its block forgets the call: ttrpc has no way to tell the server so."""

    def __init__(
        self,
        connection: "_ClientConnection",
        number: int,
        answers: _Answers,
        response: type[R],
        name: str,
        timeout: float | None,
        sending: bool,
    ) -> None:
        self._connection = connection
        self._number = number
        self._answers = answers
        self._response = response
        self._name = name
        self._timeout = timeout
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._sending = sending
        self._over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.forget(self._number)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send(self, message: Message) -> None:
        """Send a message and wait while the other side is slower than we are.

        Raises:
            ValueError: this side has already ended its part.
        """
        if not self._sending:
            raise ValueError(f"{self._name}: this side of the stream is closed")
        self._connection.send(self._number, frames.DATA, 0, message.SerializeToString())
        await self._connection.drain()

    def close_send(self) -> None:
        """Tell the server that all is said. A second call does nothing."""
        if self._sending:
            self._sending = False
            self._connection.send(self._number, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA)

    async def receive(self) -> R | None:
        """The next message, or None at the end of the stream."""
        if self._over:
            return None
        try:
            async with asyncio.timeout_at(self._deadline):
                payload = await self._answers.get()
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._name}: no answer within {self._timeout:g} s") from error
        if payload is not None:
            return self._parse(payload)
        self._over = True
        final = self._answers.final
        if final is None:
            return None
        if final.status.code:
            raise RpcError.of(final.status.code, final.status.message)
        return self._parse(final.payload)

    async def single(self) -> R:
        """The one message that answers a call whose server doesn't stream."""
        message = await self.receive()
        if message is None or self._answers.final is None:
            raise Internal(f"{self._name}: the server answered with a stream")
        return message

    def _parse(self, payload: bytes) -> R:
        try:
            return self._response.FromString(payload)
        except DecodeError as error:
            kind = self._response.DESCRIPTOR.full_name
            raise Internal(f"{self._name}: {len(payload)} bytes are not a {kind}: {error}") from error


class _ClientConnection(Connection):
    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[int, _Answers] = {}
        self._next = 1

    def begin(self, answers: _Answers, flags: int, request: bytes) -> int:
        number = self._next
        if number > 0xFFFFFFFF:
            raise ConnectionLost("this connection has used up its stream numbers")
        self.send(number, frames.REQUEST, flags, request)
        self._next += 2
        self._streams[number] = answers
        return number

    def forget(self, number: int) -> None:
        if answers := self._streams.pop(number, None):
            answers.end()

    def frame_received(self, frame: Frame) -> None:
        answers = self._streams.get(frame.stream)
        if answers is None:
            return  # of a call that was given up
        if frame.kind == frames.RESPONSE:
            try:
                answers.final = ttrpc_pb2.Response.FromString(frame.data)
                answers.end()
            except DecodeError as error:
                answers.end(Internal(f"the server's response is not a ttrpc.Response: {error}"))
        elif frame.kind == frames.DATA:
            if not frame.flags & frames.NO_DATA:
                self.deliver(answers, frame.data)
            if frame.flags & frames.REMOTE_CLOSED:
                answers.end()

    def oversized_received(self, frame: Oversized) -> None:
        if answers := self._streams.get(frame.stream):
            answers.end(ResourceExhausted(f"an answer of {frame.length} bytes exceeds ttrpc's limit"))

    def ended(self) -> None:
        error = ConnectionLost("the ttrpc server closed the connection")
        for answers in self._streams.values():
            answers.end(error)
        self._streams.clear()
