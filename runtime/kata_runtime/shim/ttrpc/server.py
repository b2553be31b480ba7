"""Answers ttrpc calls.

Every call is a task of its own: calls don't wait for each other, and what goes wrong in one is an error of that call.
Where the protocol leaves things open, this follows containerd/ttrpc's server (server.go, services.go).
"""

import asyncio
import contextvars
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, suppress
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

from google.protobuf.message import DecodeError, Message

from kata_common.text import told
from kata_protos.containerd import ttrpc_pb2
from kata_runtime.shim.ttrpc import frames
from kata_runtime.shim.ttrpc.connection import Connection
from kata_runtime.shim.ttrpc.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    RpcError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from kata_runtime.shim.ttrpc.frames import Frame, Oversized
from kata_runtime.shim.ttrpc.service import Call, Method, Service, _call
from kata_runtime.shim.ttrpc.stream import Inbox
from kata_telemetry.span import Kind, Site

M = TypeVar("M", bound=Message)

__all__ = ["Funnel", "Server", "span_per_call"]

_log = logging.getLogger("kata.shim.ttrpc")
_trace = Site(package="containerdshim", subsystem="ttrpc")

# What surrounds every call: entered before its handler runs, left with its exception.
Funnel = Callable[[Call], AbstractContextManager[object]]


def span_per_call(call: Call) -> AbstractContextManager[object]:
    """The plainest funnel: a span with the method's name under the server's current span."""
    return _trace.span(call.method, kind=Kind.SERVER, rpc_service=call.service)


class Server:
    """Serves `services` on any number of listening sockets; an async context manager that ends with `close(grace)`.

    Handlers see the context variables (the current span) of the place where the server was made. At the end clients
    have `farewell` seconds to leave by themselves: Go's client forgets an answer that is followed at once by the end of
    the connection (containerd/ttrpc client.go: it selects either).
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        funnel: Funnel = span_per_call,
        grace: float = 5.0,
        farewell: float = 0.0,
    ) -> None:
        self.services: dict[str, Service] = {}
        for service in services:
            if service.name in self.services:
                raise ValueError(f"service {service.name} is there twice")
            self.services[service.name] = service
        self.funnel = funnel
        self.grace = grace
        self.farewell = farewell
        self.context = contextvars.copy_context()
        self.closing = False
        self.connections: set[_ServerConnection] = set()
        self._visited = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listeners: list[asyncio.Server] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(self.grace if error is None else 0.0)

    async def listen(self, listener: socket.socket) -> None:
        """Accept connections on a bound unix socket, which belongs to the server from now on."""
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(lambda: _ServerConnection(self), sock=listener))

    async def adopt(self, connected: socket.socket) -> Connection:
        """Serve one socket that is already connected, which belongs to the server from now on."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.connect_accepted_socket(lambda: _ServerConnection(self), connected)
        return connection

    def connected(self, connection: "_ServerConnection") -> None:
        """A client has come."""
        self.connections.add(connection)
        self._visited.set()
        self._empty.clear()

    def disconnected(self, connection: "_ServerConnection") -> None:
        """A client has gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._visited.clear()
            self._empty.set()

    async def visited(self) -> None:
        """Return when somebody is connected."""
        await self._visited.wait()

    async def alone(self, patience: float) -> None:
        """Return when nobody has been connected for `patience` seconds."""
        while True:
            await self._empty.wait()
            try:
                async with asyncio.timeout(patience):
                    await self._visited.wait()
            except TimeoutError:
                return

    async def close(self, grace: float = 5.0) -> None:
        """Accept nothing new, give running calls `grace` seconds, cancel the rest, and let the connections end.

        New calls on open connections are refused with UNAVAILABLE meanwhile.
        """
        self.closing = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if calls := {task for connection in self.connections for task in connection.tasks}:
            _, late = await asyncio.wait(calls, timeout=grace)
            for task in late:
                task.cancel("the server is shutting down")
            if late:
                await asyncio.wait(late)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.farewell):
                for connection in list(self.connections):
                    await connection.lost.wait()
        async with asyncio.TaskGroup() as group:
            for connection in list(self.connections):
                group.create_task(connection.close())


class _Stream:
    """The server's end of a call that streams."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.inbox = Inbox()

    async def requests(self) -> AsyncIterator[Message]:
        while (payload := await self.inbox.get()) is not None:
            yield _decode(self.method.request, payload)


class _ServerConnection(Connection):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connected(self)

    def ended(self) -> None:
        if self.partial:
            _log.warning("a ttrpc client left in the middle of a frame")
        self._server.disconnected(self)
        for stream in self._streams.values():
            stream.inbox.end(ConnectionLost("the client closed the connection"))
        for task in self.tasks:
            task.cancel("the client is gone")

    def oversized_received(self, frame: Oversized) -> None:
        error = ResourceExhausted(f"a message of {frame.length} bytes exceeds ttrpc's limit of {frames.MAX_DATA}")
        if stream := self._streams.get(frame.stream):
            stream.inbox.end(error)  # its handler learns and answers
        else:
            self._last_stream = max(self._last_stream, frame.stream)
            self._respond(frame.stream, error)

    def frame_received(self, frame: Frame) -> None:
        try:
            if frame.kind == frames.REQUEST:
                self._request(frame)
            elif frame.kind == frames.DATA:
                self._data(frame)
            # Anything else is to be ignored, for what may come in later versions of the protocol.
        except RpcError as error:
            self._respond(frame.stream, error)

    def _request(self, frame: Frame) -> None:
        if frame.stream % 2 == 0:
            raise InvalidArgument(f"stream {frame.stream}: a client's streams have odd numbers")
        if frame.stream <= self._last_stream:
            raise InvalidArgument(f"stream {frame.stream}: numbers must grow, the last one was {self._last_stream}")
        self._last_stream = frame.stream
        request = _decode(ttrpc_pb2.Request, frame.data)
        if self._server.closing:
            raise Unavailable("the server is shutting down")
        method = self._method(request.service, request.method)
        metadata: dict[str, tuple[str, ...]] = {}
        for pair in request.metadata:
            key = pair.key.lower()
            metadata[key] = (*metadata.get(key, ()), pair.value)
        call = Call(
            service=request.service,
            method=request.method,
            metadata=MappingProxyType(metadata),
            timeout=request.timeout_nano / 1e9 if request.timeout_nano else None,
            request=None if method.client_streams else _decode(method.request, request.payload),
        )
        stream = None
        if method.client_streams:
            stream = self._streams[frame.stream] = _Stream(method)
            # containerd/ttrpc takes a payload that comes with the request for the first message.
            if request.payload:
                stream.inbox.put(request.payload)
            if not frame.flags & frames.REMOTE_OPEN:
                stream.inbox.end()
        task = asyncio.get_running_loop().create_task(
            self._answer(frame.stream, method, call, stream),
            name=f"ttrpc {request.method}",
            context=self._server.context.copy(),
        )
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _method(self, service: str, method: str) -> Method:
        if service not in self._server.services:
            raise Unimplemented(f"service {service} is not served here")
        if method not in self._server.services[service].methods:
            raise Unimplemented(f"service {service} has no method {method}")
        return self._server.services[service].methods[method]

    def _data(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            raise InvalidArgument(f"stream {frame.stream} is not open for data")
        if stream.inbox.ended:
            # The handler may not have come to read the end yet: the answer to the call is still its own.
            _log.warning("data after the end of ttrpc stream %d", frame.stream)
            return
        if not frame.flags & frames.NO_DATA:
            self.deliver(stream.inbox, frame.data)
        if frame.flags & frames.REMOTE_CLOSED:
            stream.inbox.end()

    async def _answer(self, number: int, method: Method, call: Call, stream: _Stream | None) -> None:
        """Run a call to its answer. Nothing but cancellation comes out of here."""
        error: RpcError | None = None
        payload: bytes | None = None
        try:
            payload = await self._run(number, method, call, stream)
        except RpcError as failure:
            error = failure
        except asyncio.CancelledError as failure:
            if not self.open:
                raise
            error = Unavailable(str(failure)) if self._server.closing else Cancelled(f"{method.name} was cancelled")
        except Exception as failure:  # the other side gets a status whatever happens
            _log.exception("%s/%s failed", call.service, call.method)
            error = Unknown(f"{type(failure).__name__}: {failure}")
        finally:
            self._streams.pop(number, None)
        if error is None and payload is None:
            self._send(number, frames.DATA, frames.REMOTE_CLOSED | frames.NO_DATA)
        else:
            self._respond(number, error, payload or b"")

    async def _run(self, number: int, method: Method, call: Call, stream: _Stream | None) -> bytes | None:
        """The response, serialized; None where the responses were a stream that is now at its end."""
        _call.set(call)
        argument = call.request if stream is None else stream.requests()
        with self._server.funnel(call):
            try:
                async with asyncio.timeout(call.timeout) as deadline:
                    if not method.server_streams:
                        return self._encode(method, await method.handler(argument))
                    async for response in method.handler(argument):
                        self.send(number, frames.DATA, 0, self._encode(method, response))
                        await self.drain()
                    return None
            except TimeoutError as failure:
                if deadline.expired():
                    raise DeadlineExceeded(f"{method.name} took longer than {call.timeout:g} s") from failure
                raise DeadlineExceeded(f"{method.name}: {str(failure) or 'something took too long'}") from failure

    @staticmethod
    def _encode(method: Method, response: Message) -> bytes:
        if not isinstance(response, method.response):
            raise TypeError(f"{method.name} answered {type(response).__name__}, not {method.response.__name__}")
        payload = response.SerializeToString()
        # Leaves room for the Response that this is put into.
        if len(payload) > frames.MAX_DATA - 16:
            raise ResourceExhausted(f"{method.name}'s answer of {len(payload)} bytes exceeds ttrpc's limit")
        return payload

    def _respond(self, number: int, error: RpcError | None, payload: bytes = b"") -> None:
        response = ttrpc_pb2.Response(payload=payload)
        if error is not None:
            response.status.code = error.code
            # containerd's clients print it; it may quote whoever is in the guest.
            response.status.message = told(str(error))
        self._send(number, frames.RESPONSE, 0, response.SerializeToString())

    def _send(self, number: int, kind: int, flags: int, data: bytes = b"") -> None:
        if self.open:  # nobody is left to tell otherwise
            self.send(number, kind, flags, data)


def _decode(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"{len(data)} bytes are not a {kind.DESCRIPTOR.full_name}: {error}") from error
