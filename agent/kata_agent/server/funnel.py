"""The one way into the agent: every call of every service passes here.

For a call the funnel asks the sandbox's policy, learns the setting of tracing that the request may carry, opens the
span under the caller's (W3C metadata), sets the fields of the log, runs the handler and turns what it raises into a
status. Handlers know none of this. The deadline needs no code: grpc.aio cancels a handler whose caller's time is up or
who went away, and everything below undoes its work when cancelled.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Final, NamedTuple

import grpc

from kata_agent.errors import AgentError, PreconditionError
from kata_agent.guest import machine
from kata_agent.server.policy import ALLOW_ALL
from kata_agent.server.tracing import Setting, Tracing
from kata_agent.services.elsewhere import ELSEWHERE
from kata_common.contract import ERROR_KEY, HOST_CID, RPCS, Level, snake_case
from kata_telemetry.propagation import extract
from kata_telemetry.span import Kind, Site

__all__ = ["Funnel", "Plain"]

_trace = Site(package="agent", subsystem="rpc")
_log = logging.getLogger("kata.agent")

# How many spans a call gets that repeats.
ENOUGH: Final = 32
MAX_DETAILS: Final = 2048
HOST: Final = f"vsock:{HOST_CID}:"

Handler = Callable[[Any, Any], Awaitable[Any]]


class Plain(NamedTuple):
    """A method: from bytes to bytes."""

    parse: Callable[[bytes], Any]
    answer: Handler
    write: Callable[[Any], bytes]


def setting_of(request: Any) -> Setting | None:  # noqa: ANN401 - any message
    """The setting of tracing in a request that carries one."""
    if "tracing" not in request.DESCRIPTOR.fields_by_name or not request.HasField("tracing"):
        return None
    tracing = request.tracing
    return Setting(
        tracing.enabled,
        tracing.traceparent,
        (tracing.clock.offset_ns, tracing.clock.bound_ns) if tracing.HasField("clock") else None,
        tracing.transport == tracing.FORWARDER,
        Level(min(tracing.level, Level.DETAILED)),
        tracing.recorder,
        tracing.since_ns,
        tuple(tracing.log_levels),
    )


class Funnel:
    """Wraps services for grpc.aio."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._seen: Counter[str] = Counter()
        # Which calls are answered; whoever sets it is a call itself.
        self.policy = ALLOW_ALL

    def service(self, messages: ModuleType, name: str, handlers: object) -> grpc.GenericRpcHandler:
        """The service `name` of a protobuf module, served by the methods of `handlers` (names in snake case).

        A method that isn't there answers UNIMPLEMENTED; with words, where it is one of Kata's that means nothing here.
        """
        table: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._elsewhere(words)) for name, words in ELSEWHERE.items()
        }
        descriptor = messages.DESCRIPTOR.services_by_name[name]
        for method in descriptor.methods:
            handler = getattr(handlers, snake_case(method.name), None)
            if handler is None:
                continue
            request = getattr(messages, method.input_type.name).FromString
            reply = getattr(messages, method.output_type.name).SerializeToString
            if method.server_streaming:
                table[method.name] = grpc.unary_stream_rpc_method_handler(
                    self._streaming(method.name, handler), request, reply
                )
            else:
                table[method.name] = grpc.unary_unary_rpc_method_handler(
                    self._unary(method.name, handler), request, reply
                )
        return grpc.method_handlers_generic_handler(descriptor.full_name, table)

    def plain(self, messages: ModuleType, name: str, handlers: object) -> dict[str, Plain]:
        """The same methods for whoever is not gRPC, those that stream left out: what parses, what answers, what writes.

        What answers gets a context with `peer`, `invocation_metadata` and `abort` as gRPC's.
        """
        found = {name: Plain(bytes, self._elsewhere(words), bytes) for name, words in ELSEWHERE.items()}
        for method in messages.DESCRIPTOR.services_by_name[name].methods:
            handler = getattr(handlers, snake_case(method.name), None)
            if handler is not None and not method.server_streaming:
                request = getattr(messages, method.input_type.name).FromString
                reply = getattr(messages, method.output_type.name).SerializeToString
                found[method.name] = Plain(request, self._unary(method.name, handler), reply)
        return found

    def _unary(self, method: str, handler: Callable[[Any], Awaitable[Any]]) -> Handler:
        level = RPCS[method].level

        async def call(request: Any, context: Any) -> Any:  # noqa: ANN401 - any message
            try:
                self.policy.check(method, request)
                with self._span(method, level, request, context) if level is not None else nullcontext():
                    return await handler(request)
            except Exception as error:
                await self._abort(method, context, error)

        return call

    def _elsewhere(self, words: str) -> Handler:
        async def call(_: object, context: Any) -> None:  # noqa: ANN401 - gRPC's or CallServer's
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, words, ())

        return call

    def _streaming(self, method: str, handler: Callable[[Any], AsyncIterator[Any]]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - any message
            try:
                self.policy.check(method, request)
                async for reply in handler(request):
                    yield reply
            except Exception as error:
                await self._abort(method, context, error)

        return call

    def _span(self, method: str, level: Level, request: Any, context: Any) -> AbstractContextManager[object]:  # noqa: ANN401
        peer = context.peer()
        if peer.startswith("vsock:") and not peer.startswith(HOST):
            raise PreconditionError("only the host may call the agent")
        tracing = self._tracing
        since = tracing.clock.now()
        if method == "CreateSandbox" and request.entropy and os.getpid() == 1:
            # Before the first id is drawn. Only where the kernel is the guest's: a test may run the agent elsewhere.
            machine.renew(request.entropy)
        setting = setting_of(request)
        if setting:
            # Before the span, so that CreateSandbox itself is in the trace.
            tracing.configure(setting, getattr(request, "sandbox_id", ""), since)
        if not tracing.enabled:
            return nullcontext()
        parent = extract(context.invocation_metadata())
        if not tracing.records(level):
            return tracing.without_span(parent)
        if not self._worth_a_span(method):
            return nullcontext()
        attributes = {
            key: value[:128]
            for key in ("container_id", "exec_id")
            if isinstance(value := getattr(request, key, None), str) and value
        }
        return tracing.begin(snake_case(method), parent, since, _trace, Kind.SERVER, **attributes)

    def _worth_a_span(self, method: str) -> bool:
        if not RPCS[method].repeats:
            return True
        self._seen[method] += 1
        return self._seen[method] <= ENOUGH

    async def _abort(self, method: str, context: Any, error: Exception) -> None:  # noqa: ANN401
        if isinstance(error, AgentError):
            status, text = grpc.StatusCode[error.status], str(error)
            trailing = ((ERROR_KEY, error.marker),) if error.marker else ()
            _log.info("%s: %s", method, text)
        else:
            if isinstance(error, asyncio.CancelledError):
                raise error
            status, trailing = grpc.StatusCode.INTERNAL, ()
            text = f"agent: {type(error).__name__}: {error}"
            _log.error("%s failed", method, exc_info=error)
        await context.abort(status, text[:MAX_DETAILS], trailing)
