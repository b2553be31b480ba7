"""Spans as the code that is traced sees them.

A module that is traced has one `Site`, which gives its spans their `package` and `subsystem`:

    _trace = Site(package="hypervisor", subsystem="qemu")

    async def start(self) -> None:
        with _trace.span("StartVM", accelerator="kvm") as span:
            ...
            span.event("greeting received")

A span's parent is the current span of the context (a task inherits its creator's). Where there is none, nothing is
recorded: tracing off costs one look at a context variable. Roots, and spans whose parent is in another process, come
from a `Tracer`. Ended spans go to the tracer's sink as they are (why: docs/decisions/0001).
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple, Self

from kata_telemetry.clock import Clock, HostClock

__all__ = ["Event", "Kind", "Site", "Span", "SpanContext", "Status", "Tracer", "current", "traceparent", "use"]

Value = str | bool | int | float

# What a span is about; its children are about the same.
INHERITED = frozenset({"source", "sandbox_id", "container_id", "exec_id"})
# The SDK's own default limit for events of a span.
MAX_EVENTS = 128


class Kind(IntEnum):
    """OTLP's span kinds (opentelemetry/proto/trace/v1/trace.proto)."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Status(IntEnum):
    """OTLP's status codes."""

    UNSET = 0
    OK = 1
    ERROR = 2


class SpanContext(NamedTuple):
    """What crosses process borders. `flags` are W3C trace-flags, bit 0 is sampled; `state` is W3C `tracestate`."""

    trace_id: int
    span_id: int
    flags: int = 1
    state: str = ""

    def to_traceparent(self) -> str:
        """W3C Trace Context, version 00."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    @classmethod
    def from_traceparent(cls, text: str) -> Self | None:
        """The context in a `traceparent` header, or None where it is not a valid one."""
        parts = text.strip().split("-")
        if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
            return None
        if parts[0] == "00" and len(parts) != 4:
            return None
        if any(set(part) - set("0123456789abcdef") for part in parts[:4]):
            return None
        context = cls(int(parts[1], 16), int(parts[2], 16), int(parts[3], 16))
        return context if context.trace_id and context.span_id else None


class Event(NamedTuple):
    """Something that happened at one moment of a span; `time` is a local reading (ns)."""

    name: str
    time: int
    attributes: Mapping[str, Value]


_current: ContextVar["Span | None"] = ContextVar("kata_telemetry_current_span", default=None)


class Span:
    """One operation. `start` and `end` are local readings (ns) of the tracer's clock; `end` is 0 while it lasts."""

    __slots__ = (
        "_token",
        "attributes",
        "context",
        "end",
        "events",
        "events_dropped",
        "kind",
        "links",
        "message",
        "name",
        "parent_id",
        "start",
        "status",
        "tracer",
    )

    def __init__(
        self, tracer: "Tracer", name: str, context: SpanContext, parent_id: int, attributes: dict[str, Value]
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.context = context
        self.parent_id = parent_id
        self.attributes = attributes
        self.kind = Kind.INTERNAL
        self.start = tracer.clock.now()
        self.end = 0
        self.events: list[Event] = []
        self.events_dropped = 0
        self.links: list[SpanContext] = []
        self.status = Status.UNSET
        self.message = ""

    def __repr__(self) -> str:
        return f"<Span {self.name} {self.context.span_id:016x} {'ended' if self.end else 'open'}>"

    @property
    def recording(self) -> bool:
        """Whether work done only for this span's sake is worth doing."""
        return True

    def set(self, **attributes: Value) -> None:
        """Add attributes. Never environment values, file contents or whole specs: traces are not secret."""
        self.attributes.update(attributes)

    def event(self, name: str, *, at: int = 0, **attributes: Value) -> None:
        """Add an event at the local reading `at` (ns), now by default. Beyond 128 only the number is kept."""
        self._add_event(Event(name, at or self.tracer.clock.now(), attributes))

    def _add_event(self, event: Event) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.events_dropped += 1

    def link(self, context: SpanContext) -> None:
        """Relate this span to one that is not its parent."""
        self.links.append(context)

    def fail(self, error: BaseException | str) -> None:
        """Set the status to error and record why."""
        self.status = Status.ERROR
        self.message = str(error) or type(error).__name__
        if isinstance(error, BaseException):
            kind = type(error)
            # The names of OpenTelemetry's semantic conventions for exceptions.
            details: dict[str, Value] = {
                "exception.type": f"{kind.__module__}.{kind.__qualname__}",
                "exception.message": str(error),
            }
            self._add_event(Event("exception", self.tracer.clock.now(), details))

    def finish(self, *, at: int = 0) -> None:
        """End the span at the local reading `at` (ns), now by default, and hand it on. A second call does nothing."""
        if self.end:
            return
        self.end = max(at or self.tracer.clock.now(), self.start)
        self.tracer.ended(self)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if _is_cancellation(error):
            self.event("cancelled")
        elif error is not None and not isinstance(error, GeneratorExit):
            self.fail(error)
        self.finish()


class _NoSpan(Span):
    """Stands in for a span where there is no trace."""

    __slots__ = ()

    def __init__(self) -> None:
        # Deliberately without the parts of a real span: every method below ignores them.
        self.context = SpanContext(0, 0, 0)

    @property
    def recording(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<no span>"

    def set(self, **attributes: Value) -> None:
        pass

    def event(self, name: str, *, at: int = 0, **attributes: Value) -> None:
        pass

    def link(self, context: SpanContext) -> None:
        pass

    def fail(self, error: BaseException | str) -> None:
        pass

    def finish(self, *, at: int = 0) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


NO_SPAN: Span = _NoSpan()


class Tracer:
    """Makes the spans of one side (service) of one sandbox.

    `sink` gets every ended span, on the thread that ended it, and must neither block nor raise. `common` are the
    attributes that every span of this tracer has (`source`, `sandbox_id`). `opened` gets every span when it starts,
    under the same conditions; it is how a store shows what has not ended yet.
    """

    def __init__(
        self,
        service: str,
        sink: Callable[[Span], None],
        *,
        clock: Clock | None = None,
        common: Mapping[str, Value] | None = None,
        opened: Callable[[Span], None] | None = None,
    ) -> None:
        self.service = service
        self.clock: Clock = clock or HostClock()
        self.common = dict(common or {})
        self.ended = sink
        self.opened = opened

    def start(
        self,
        name: str,
        *,
        parent: Span | SpanContext | None = None,
        start: int = 0,
        kind: Kind = Kind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
    ) -> Span:
        """Open a span; without `parent` it is the root of a new trace. `start` is a local reading (ns), now by default.

        The span becomes current only when it is entered (`with`); otherwise its owner calls `finish()`.
        """
        merged = dict(self.common)
        if isinstance(parent, _NoSpan):
            parent = None
        elif isinstance(parent, Span):
            merged.update((key, value) for key, value in parent.attributes.items() if key in INHERITED)
            parent = parent.context
        if attributes:
            merged.update(attributes)
        if parent is None:
            context, parent_id = SpanContext(_random_id(16), _random_id(8)), 0
        else:
            context, parent_id = parent._replace(span_id=_random_id(8)), parent.span_id
        span = Span(self, name, context, parent_id, merged)
        span.kind = kind
        if start:
            span.start = start
        if self.opened:
            self.opened(span)
        return span


class Site:
    """A traced module: opens spans under the current one, with the module's `package` and `subsystem`."""

    __slots__ = ("_attributes",)

    def __init__(self, *, package: str, subsystem: str) -> None:
        self._attributes: dict[str, Value] = {"package": package, "subsystem": subsystem}

    def span(self, name: str, *, kind: Kind = Kind.INTERNAL, **attributes: Value) -> Span:
        """A child of the current span, to be entered: `with site.span("name"):`. An exception sets its status."""
        return self._child(name, 0, kind, attributes)

    def start(self, name: str, *, start: int = 0, kind: Kind = Kind.INTERNAL, **attributes: Value) -> Span:
        """A child of the current span that somebody else ends with `finish()`."""
        return self._child(name, start, kind, attributes)

    def _child(self, name: str, start: int, kind: Kind, attributes: dict[str, Value]) -> Span:
        parent = _current.get()
        if parent is None:
            return NO_SPAN
        merged = {**self._attributes, **attributes}
        return parent.tracer.start(name, parent=parent, start=start, kind=kind, attributes=merged)

    def record(self, name: str, start: int, end: int, **attributes: Value) -> None:
        """A child of the current span that is already over; `start` and `end` are local readings (ns)."""
        self._child(name, start, Kind.INTERNAL, attributes).finish(at=end)

    def root(
        self,
        tracer: Tracer,
        name: str,
        *,
        parent: SpanContext | None = None,
        start: int = 0,
        kind: Kind = Kind.INTERNAL,
        **attributes: Value,
    ) -> Span:
        """A span whose parent, if any, is in another process."""
        return tracer.start(name, parent=parent, start=start, kind=kind, attributes={**self._attributes, **attributes})


def current() -> Span:
    """The current span; where there is none, one that ignores everything."""
    return _current.get() or NO_SPAN


def traceparent() -> str | None:
    """W3C `traceparent` of the current span, or None where there is no trace."""
    span = _current.get()
    return span.context.to_traceparent() if span else None


@contextmanager
def use(span: Span) -> Iterator[Span]:
    """Make `span` current for the block without ending it."""
    token = _current.set(span if span.recording else None)
    try:
        yield span
    finally:
        _current.reset(token)


def _is_cancellation(error: BaseException | None) -> bool:
    # Importing asyncio costs 40 ms; where nobody has, there is nothing to cancel.
    asyncio = sys.modules.get("asyncio.exceptions")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def _random_id(size: int) -> int:
    # os.urandom, not a seeded generator: two clones of one template must not draw the same ids.
    return int.from_bytes(os.urandom(size), "big") or 1
