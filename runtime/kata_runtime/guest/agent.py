"""The runtime's end of the agent's API: every call goes through one funnel (span, deadline, errors)."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from kata_common.contract import ERROR_KEY, RPCS, Marker, Port
from kata_protos import agent_pb2 as pb
from kata_protos import agent_pb2_grpc
from kata_runtime.errors import AgentError, CommandNotExecutableError, CommandNotFoundError
from kata_runtime.guest.call import make_call
from kata_runtime.metrics.durations import AGENT_CALLS
from kata_telemetry.propagation import inject
from kata_telemetry.span import Kind, Site

__all__ = ["AgentClient"]

_trace = Site(package="virtcontainers", subsystem="agent")
_Response = TypeVar("_Response")

# Errors by what the agent says in its trailing metadata.
_KINDS: dict[str, type[AgentError]] = {
    Marker.COMMAND_NOT_FOUND: CommandNotFoundError,
    Marker.COMMAND_NOT_EXECUTABLE: CommandNotExecutableError,
}
# Kata's own default for agent calls (kata-facts 4.2).
DEFAULT_TIMEOUT = 60.0
# Fields of requests that say what a call is about.
_ABOUT = ("container_id", "exec_id")
# Bytes: of a batch of spans, gRPC's own limit; of an answer to a call, which says what few things are like.
_MAX_MESSAGE = 4 << 20
_MAX_ANSWER = 512 << 10


# Connects to a port of the guest, see `Transport`.
Dial = Callable[[int], Awaitable[tuple[socket.socket, int]]]
_Running = grpc.aio.Call | asyncio.Future[object]
# The last answer before the power goes: gRPC knows when the host has it.
_BY_GRPC: Final = frozenset({"DestroySandbox"})
_ANSWERS: Final[dict[str, type[Message]]] = {
    method.name: getattr(pb, method.output_type.name)
    for method in pb.DESCRIPTOR.services_by_name["AgentService"].methods
}


def _name_of(code: int) -> str:
    return next((status.name for status in grpc.StatusCode if status.value[0] == code), f"status {code}")


class AgentClient:
    """A connected agent. Methods are the RPCs; all raise `AgentError`."""

    def __init__(self, channel: grpc.aio.Channel, dial: Dial | None = None) -> None:
        self._dial = dial
        self.service = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health = agent_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        self._running: set[_Running] = set()
        self._lost = ""

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str, dial: Dial | None = None) -> AsyncIterator["AgentClient"]:
        """A client for the agent at a gRPC address (`unix:…`); it dials with the first call.

        With `dial`, which connects to a port of the guest, most calls do without gRPC.
        """
        options = [
            # The address is a path, which strict HTTP/2 servers refuse as :authority.
            ("grpc.default_authority", "kata-agent"),
            # Sub-channels are shared by address inside a process, back-off included.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.enable_http_proxy", 0),
        ]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield cls(channel, dial)

    async def call(
        self,
        method: Callable[..., grpc.aio.UnaryUnaryCall[object, _Response]],
        request: object,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> _Response:
        """One RPC: `await agent.call(agent.service.CreateSandbox, pb.CreateSandboxRequest(...))`.

        Raises:
            AgentError: the agent refused, is gone, or did not answer within `timeout` seconds (None: no limit).
        """
        name = type(request).__name__.removesuffix("Request")
        with AGENT_CALLS.timed(f"grpc.{name}Request"), _span(name, request, lasts=timeout is None):
            if self._lost:
                raise AgentError(name, "UNAVAILABLE", self._lost)
            if self._dial is not None and name not in _BY_GRPC:
                call: _Running = asyncio.ensure_future(self._plain(name, request, timeout))
            else:
                call = method(request, timeout=timeout, metadata=tuple(inject()))
            self._running.add(call)
            try:
                return _bounded(name, cast("_Response", await cast("Awaitable[object]", call)))
            except grpc.aio.AioRpcError as error:
                raise _translated(name, error) from error
            except asyncio.CancelledError as error:
                call.cancel()
                if not self._lost:
                    raise
                raise AgentError(name, "UNAVAILABLE", self._lost) from error
            finally:
                self._running.discard(call)

    async def _plain(self, name: str, request: object, timeout: float | None) -> object:
        """The same without gRPC."""
        assert self._dial is not None
        assert isinstance(request, Message)
        try:
            async with asyncio.timeout(timeout):
                stream, _ = await self._dial(Port.CALLS)
                with stream:
                    code, data = await make_call(stream, name, tuple(inject()), request.SerializeToString())
        except TimeoutError as error:
            raise AgentError(name, "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s") from error
        except OSError as error:
            raise AgentError(name, "UNAVAILABLE", str(error)) from error
        if code:
            marker, _, text = data.decode("utf-8", "replace").partition("\0")
            raise _KINDS.get(marker, AgentError)(name, _name_of(code), text or "no reason given")
        try:
            return _ANSWERS[name].FromString(data)
        except DecodeError as error:
            raise AgentError(name, "INTERNAL", f"its answer can't be read: {error}") from error

    async def check(self, *, timeout: float) -> None:
        """Ask whether the agent serves. It is asked all the time, so this leaves no span.

        Raises:
            AgentError: it does not answer within `timeout` seconds, or refuses.
        """
        try:
            await self.health.Check(pb.CheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _translated("Check", error) from error

    def lost(self, reason: str) -> None:
        """The guest is gone, which its connection may not tell: running and later calls fail as UNAVAILABLE."""
        self._lost = reason
        for call in self._running:
            call.cancel()

    async def spans(self) -> AsyncIterator[pb.SpanBatch]:
        """The agent's ended spans until it has none left; a broken connection just ends them."""
        try:
            async for batch in self.service.StreamSpans(pb.StreamSpansRequest()):
                yield batch
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return


def _span(name: str, request: object, *, lasts: bool) -> AbstractContextManager[object]:
    level = RPCS[name].level
    if level is None:
        return nullcontext()
    about: dict[str, Any] = {key: value for key in _ABOUT if (value := getattr(request, key, ""))}
    return _trace.span(f"AgentService.{name}", kind=Kind.CLIENT, level=level, lasts=lasts, **about)


def _bounded(method: str, answer: _Response) -> _Response:
    size = answer.ByteSize() if isinstance(answer, Message) else 0
    if size > _MAX_ANSWER:
        raise AgentError(method, "RESOURCE_EXHAUSTED", f"an answer of {size} bytes, more than {_MAX_ANSWER}")
    return answer


def _translated(method: str, error: grpc.aio.AioRpcError) -> AgentError:
    metadata = error.trailing_metadata() or ()
    kind = next((str(value) for key, value in metadata if key == ERROR_KEY), "")
    details = error.details() or "no reason given"
    return _KINDS.get(kind, AgentError)(method, error.code().name, details)
