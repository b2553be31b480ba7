"""Which method of which object answers which call, taken from a service's protobuf descriptor."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kata_common.contract import snake_case
from kata_telemetry.propagation import extract
from kata_telemetry.span import SpanContext

__all__ = ["Call", "Method", "Service", "bind", "current_call"]

Metadata = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Method:
    """One method of a service.

    `handler` gets the request, or an async iterator of requests where the client streams, and is a coroutine function
    that returns the response, or an async generator of responses where the server streams.
    """

    name: str
    request: type[Message]
    response: type[Message]
    client_streams: bool
    server_streams: bool
    handler: Callable[[Any], Any]

    @property
    def unary(self) -> bool:
        """Whether both sides send exactly one message."""
        return not (self.client_streams or self.server_streams)


@dataclass(frozen=True)
class Service:
    """A service's full name (`containerd.task.v2.Task`) and its methods by name."""

    name: str
    methods: Mapping[str, Method]


@dataclass(frozen=True)
class Call:
    """What is known about a call besides its messages.

    `metadata` has lower-case keys. `timeout` is what the caller allows, in seconds; None where it will wait for ever.
    `request` is the request, None where the client streams.
    """

    service: str
    method: str
    metadata: Metadata = field(default_factory=lambda: MappingProxyType({}))
    timeout: float | None = None
    request: Message | None = None

    @property
    def parent(self) -> SpanContext | None:
        """The caller's span (W3C Trace Context in the metadata); None where there is none or it is malformed."""
        return extract(self.carrier)

    @property
    def carrier(self) -> list[tuple[str, str]]:
        """The metadata as propagators take it."""
        return [(key, value) for key, values in self.metadata.items() for value in values]


_call: ContextVar[Call | None] = ContextVar("kata_ttrpc_call", default=None)


def current_call() -> Call | None:
    """The call that is being answered; None outside of a handler."""
    return _call.get()


def bind(descriptor: ServiceDescriptor, implementation: object) -> Service:
    """A service whose methods are those of `implementation`, in snake case: `CloseIO` is answered by `close_io`.

    Raises:
        TypeError: the implementation lacks a method.
    """
    methods = {}
    for method in descriptor.methods:
        handler = getattr(implementation, snake_case(method.name), None)
        if not callable(handler):
            raise TypeError(
                f"{type(implementation).__name__} has no {snake_case(method.name)}() for {method.full_name}"
            )
        methods[method.name] = Method(
            name=method.name,
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            client_streams=method.client_streaming,
            server_streams=method.server_streaming,
            handler=handler,
        )
    return Service(descriptor.full_name, MappingProxyType(methods))
