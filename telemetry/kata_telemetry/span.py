"""Spans as the code that is traced sees them.

A module that is traced has one `Site`, which gives its spans their `package` and `subsystem`:

    _trace = Site(package="hypervisor", subsystem="qemu")

    async def start(self) -> None:
        with _trace.span("StartVM", accelerator="kvm") as span:
            ...
            span.event("greeting received")

A span's parent is the current span of the context (a task inherits its creator's). Where there is none, or its tracer
is off, nothing is recorded. Roots, and spans whose parent is in another process, come from a `Tracer`. Ended spans go
to the tracer's sink as they are (why: docs/decisions/0001).

Every span has a level; a tracer makes those up to its own, and what lies under one that is not made lies under that
one's parent. `site.stage(...)` is essential, `site.span(...)` normal, `site.detail(...)` for a close look.

A span is cheap, because most are only kept by a flight recorder and never read: ids are drawn and attributes merged
when somebody asks for them.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self

from kata_common.contract import Level
from kata_telemetry.clock import Clock, HostClock
from kata_telemetry.values import Event, Kind, Status, Value
from kata_telemetry.w3c import SpanContext, random_id

__all__ = [
    "Event",
    "Kind",
    "Level",
    "Site",
    "Span",
    "SpanContext",
    "Status",
    "Tracer",
    "current",
    "unrecorded",
    "use",
]

# What a span is about; its children are about the same.
INHERITED = frozenset({"source", "sandbox_id", "container_id", "exec_id"})
# The SDK's own default limit for events of a span.
MAX_EVENTS = 128


_current: ContextVar["Span | None"] = ContextVar("kata_telemetry_current_span", default=None)


class Span:
    """One operation. `start` and `end` are local readings (ns) of the tracer's clock; `end` is 0 while it lasts.

    `parent` is a span, the context of one in another process, or None for the root of a trace. A `leaf` lasts so long
    that nothing is put under it: what is made in it becomes its sibling, with a link to it.
    """

    __slots__ = (
        "_context",
        "_own",
        "_site",
        "_token",
        "end",
        "events",
        "events_dropped",
        "kept",
        "kind",
        "leaf",
        "links",
        "message",
        "name",
        "parent",
        "start",
        "status",
        "tracer",
    )
    kind: Kind
    events: Sequence[Event]
    events_dropped: int
    links: Sequence[SpanContext]
    status: Status
    message: str
    # Whether a store has it, or will.
    kept: bool
    _token: "Token[Span | None]"

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        parent: "Span | SpanContext | None",
        site: Mapping[str, Value],
        attributes: dict[str, Value],
    ) -> None:
        self.tracer = tracer
        self.name = name
        self.parent = parent
        self._site = site
        self._own = attributes
        self._context: SpanContext | None = None
        self.leaf = False
        self.end = 0
        self.start = tracer.now()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of several types
        # What most spans never have: asked for here, it costs those that do, and no span its start.
        try:
            return _UNSET[name]
        except KeyError:
            raise AttributeError(f"a span has no {name!r}") from None

    def __repr__(self) -> str:
        return f"<Span {self.name} {self.context.span_id:016x} {'ended' if self.end else 'open'}>"

    @property
    def recording(self) -> bool:
        """Whether work done only for this span's sake is worth doing."""
        return self.tracer.level >= 0

    @property
    def context(self) -> SpanContext:
        """Its ids."""
        return self._context or self._identify()

    @context.setter
    def context(self, context: SpanContext) -> None:
        self._context = context

    def _identify(self) -> SpanContext:
        # Whoever records and whoever writes may ask at the same time.
        with _identity:
            if self._context is None:
                above = self.parent.context if isinstance(self.parent, Span) else self.parent
                if above is None:
                    self._context = SpanContext(random_id(16), random_id(8))
                else:
                    self._context = above._replace(span_id=random_id(8))
            return self._context

    @property
    def parent_id(self) -> int:
        """Its parent's span id; 0 where it has none."""
        parent = self.parent.context if isinstance(self.parent, Span) else self.parent
        return parent.span_id if parent else 0

    def adopt(self, parent: "Span | SpanContext | None") -> None:
        """Belong to `parent` instead, with new ids. Only while nobody outside knows the old ones."""
        self.parent = parent
        self._context = None

    @property
    def attributes(self) -> dict[str, Value]:
        """All its attributes: a copy. Its own go before the site's, those before what it has from its parent."""
        merged = dict(self.tracer.common)
        if isinstance(self.parent, Span):
            merged.update((key, value) for key, value in self.parent.attributes.items() if key in INHERITED)
        merged.update(self._site)
        merged.update(self._own)
        return merged

    def set(self, **attributes: Value) -> None:
        """Add attributes. Never environment values, file contents or whole specs: traces are not secret."""
        self._own.update(attributes)

    def event(self, name: str, *, at: int = 0, **attributes: Value) -> None:
        """Add an event at the local reading `at` (ns), now by default. Beyond 128 only the number is kept.

        After the span's end it goes to the span of the sandbox's life, or nowhere: this one may be written already.
        """
        span = self.tracer.lifetime if self.end else self
        if span is not None and not span.end:
            span._add_event(Event(name, at or self.tracer.now(), attributes))

    def _add_event(self, event: Event) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events = [*self.events, event]
        else:
            self.events_dropped += 1

    def link(self, context: SpanContext) -> None:
        """Relate this span to one that is not its parent."""
        self.links = [*self.links, context]

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
            self._add_event(Event("exception", self.tracer.now(), details))

    def finish(self, *, at: int = 0) -> None:
        """End the span at the local reading `at` (ns), now by default, and hand it on. A second call does nothing."""
        if self.end:
            return
        self.end = max(at or self.tracer.now(), self.start)
        self.tracer.ended(self)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if error is not None:
            if _is_cancellation(error):
                self.event("cancelled")
            elif not isinstance(error, GeneratorExit):
                self.fail(error)
        if not self.end:
            # As in `finish`, without its cost.
            end = self.tracer.now()
            self.end = end if end > self.start else self.start
            self.tracer.ended(self)


class _NoSpan(Span):
    """Stands in for a span where there is no trace, or where it is below the trace's level."""

    __slots__ = ()

    def __init__(self) -> None:
        # Deliberately without the parts of a real span: every method below ignores them.
        self.parent, self.leaf = None, False
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


# The parts of a span that are there only once they are set.
_UNSET: Mapping[str, Any] = {
    "kind": Kind.INTERNAL,
    "events": (),
    "events_dropped": 0,
    "links": (),
    "status": Status.UNSET,
    "message": "",
    "kept": False,
}
NO_SPAN: Span = _NoSpan()


class Tracer:
    """Makes the spans of one side (service) of one sandbox.

    `sink` gets every ended span, on the thread that ended it, and must neither block nor raise. `common` are the
    attributes that every span of this tracer has (`source`, `sandbox_id`). `opened` gets every span when it starts,
    under the same conditions; it is how a store shows what has not ended yet. All three, and `level`, may change while
    spans are open: tracing is switched on and off in a running sandbox.

    With `leaves` spans that last (`site.span(..., lasts=True)`) are leaves, see `Span`. `lifetime` is the span of the
    sandbox's life, where it is not the root; see `Span.event`.
    """

    lifetime: Span | None = None

    def __init__(
        self,
        service: str,
        sink: Callable[[Span], object],
        *,
        clock: Clock | None = None,
        common: Mapping[str, Value] | None = None,
        opened: Callable[[Span], object] | None = None,
        level: Level = Level.NORMAL,
        leaves: bool = False,
    ) -> None:
        self.service = service
        self.clock: Clock = clock or HostClock()
        self.now = self.clock.now
        self.common = dict(common or {})
        self.ended = sink
        self.opened = opened
        self.level = level
        self.leaves = leaves

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
        if isinstance(parent, _NoSpan):
            parent = None
        return self.child(name, parent, start, kind, _NOTHING, dict(attributes or {}))

    def child(
        self,
        name: str,
        parent: Span | SpanContext | None,
        start: int,
        kind: Kind,
        site: Mapping[str, Value],
        attributes: dict[str, Value],
    ) -> Span:
        """`start` for sites: `attributes` becomes the span's own."""
        span = Span(self, name, parent, site, attributes)
        if kind is not Kind.INTERNAL:
            span.kind = kind
        if start:
            span.start = start
        if self.opened is not None:
            self.opened(span)
        return span


_NOTHING: Mapping[str, Value] = {}
# Against time: an attribute of an enumeration costs a look-up in its class.
_ESSENTIAL, _NORMAL, _DETAILED = Level.ESSENTIAL, Level.NORMAL, Level.DETAILED


class Site:
    """A traced module: opens spans under the current one, with the module's `package` and `subsystem`.

    `lasts` says of a span that it may last as long as the sandbox.
    """

    __slots__ = ("_attributes",)

    def __init__(self, *, package: str, subsystem: str) -> None:
        self._attributes: dict[str, Value] = {"package": package, "subsystem": subsystem}

    def span(
        self,
        name: str,
        *,
        kind: Kind = Kind.INTERNAL,
        level: Level = _NORMAL,
        lasts: bool = False,
        **attributes: Value,
    ) -> Span:
        """A child of the current span, to be entered: `with site.span("name"):`. An exception sets its status."""
        parent = _current.get()
        if parent is None or level > parent.tracer.level:
            return NO_SPAN
        if lasts or parent.leaf:
            return self._beside(name, parent, 0, kind, lasts, attributes)
        return parent.tracer.child(name, parent, 0, kind, self._attributes, attributes)

    def stage(self, name: str, *, kind: Kind = Kind.INTERNAL, lasts: bool = False, **attributes: Value) -> Span:
        """An essential span: without it a stage of the sandbox's life would be missing."""
        return self.span(name, kind=kind, level=_ESSENTIAL, lasts=lasts, **attributes)

    def detail(self, name: str, *, kind: Kind = Kind.INTERNAL, lasts: bool = False, **attributes: Value) -> Span:
        """A span for who looks closely."""
        return self.span(name, kind=kind, level=_DETAILED, lasts=lasts, **attributes)

    def start(
        self,
        name: str,
        *,
        start: int = 0,
        kind: Kind = Kind.INTERNAL,
        level: Level = _NORMAL,
        lasts: bool = False,
        **attributes: Value,
    ) -> Span:
        """A child of the current span that somebody else ends with `finish()`."""
        parent = _current.get()
        if parent is None or level > parent.tracer.level:
            return NO_SPAN
        return self._beside(name, parent, start, kind, lasts, attributes)

    def _beside(
        self,
        name: str,
        parent: Span,
        start: int,
        kind: Kind,
        lasts: bool,
        attributes: dict[str, Value],
    ) -> Span:
        """A child of `parent`, or its sibling where it is a leaf."""
        beside, above = (parent, parent.parent) if parent.leaf else (None, parent)
        span = parent.tracer.child(name, above, start, kind, self._attributes, attributes)
        span.leaf = lasts and parent.tracer.leaves
        if beside is not None:
            span.link(beside.context)
        return span

    def record(self, name: str, start: int, end: int, *, level: Level = _NORMAL, **attributes: Value) -> Span:
        """A child of the current span that is already over; `start` and `end` are local readings (ns)."""
        parent = _current.get()
        if parent is None or level > parent.tracer.level:
            return NO_SPAN
        span = self._beside(name, parent, start, Kind.INTERNAL, False, attributes)
        span.finish(at=end)
        return span

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
        return tracer.child(name, parent, start, kind, self._attributes, attributes)


def current() -> Span:
    """The current span; where there is none, one that ignores everything."""
    span = _current.get()
    return span if span is not None and span.tracer.level >= 0 else NO_SPAN


def parent_to_be() -> Span:
    """The span that a span made now, here or in another process, would be under."""
    span = current()
    return span.parent if span.leaf and isinstance(span.parent, Span) else span


@contextmanager
def use(span: Span) -> Iterator[Span]:
    """Make `span` current for the block without ending it. One that was not made for its level changes nothing."""
    if isinstance(span, _NoSpan):
        yield span
        return
    token = _current.set(span)
    try:
        yield span
    finally:
        _current.reset(token)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Make no spans in the block, whatever is current."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def _is_cancellation(error: BaseException | None) -> bool:
    # Importing asyncio costs 40 ms; where nobody has, there is nothing to cancel.
    asyncio = sys.modules.get("asyncio.exceptions")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


# A parent's ids are drawn while its child's are.
_identity = threading.RLock()
