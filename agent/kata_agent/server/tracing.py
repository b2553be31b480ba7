"""The agent's part of the sandbox's trace: whether there is one, its clock, and spans until the host takes them.

The agent learns by CreateSandbox (or SetTracing) whether spans are wanted. Until then the few that arise are kept; if
they are not wanted they are dropped, or the last ones kept for later (the flight recorder). Nothing of OpenTelemetry is
imported before the host takes spans.
"""

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

from kata_agent.errors import InvalidError, PreconditionError
from kata_common.contract import AGENT_SERVICE
from kata_common.threads import in_thread
from kata_telemetry.clock import GuestClock
from kata_telemetry.span import Kind, Level, Site, Span, SpanContext, Tracer, use

if TYPE_CHECKING:
    from kata_telemetry.buffer import SpanBuffer

__all__ = ["Setting", "Tracing"]

_trace = Site(package="agent", subsystem="agent")

MAX_PENDING: Final = 4096
# What the flight recorder keeps.
MAX_RECORDED: Final = 256
# Seconds that the first process has the guest for itself before spans are encoded.
HEAD_START: Final = 0.25


class Setting(NamedTuple):
    """The contract's Tracing, without protobuf. `since` in ns of the host's time."""

    enabled: bool
    traceparent: str = ""
    clock: tuple[int, int] | None = None
    # Whether spans go to the trace forwarder instead of the runtime.
    forward: bool = False
    level: Level = Level.NORMAL
    recorder: bool = False
    since: int = 0
    log_levels: tuple[str, ...] = ()


class Tracing:
    """State of tracing. `boot` is called once, when tracing is first switched on and there is time, to record the
    boot's spans: with the clock, and a function that records one span (name, start, end, children). `dial` connects to
    the trace forwarder."""

    def __init__(
        self,
        boot: Callable[["Tracing", "Span | SpanContext"], None] | None = None,
        dial: Callable[[], Awaitable[socket.socket]] | None = None,
    ) -> None:
        self.clock = GuestClock()
        self._boot = boot
        self._dial = dial
        self._open: set[Span] = set()
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what is wanted."""
        self.parent: Span | SpanContext | None = None
        self._enabled = False
        self._forward = False
        self._ending = asyncio.Event()
        self._root: Span | None = None
        # Everything, until it is known what is wanted.
        self._tracer = Tracer(
            AGENT_SERVICE,
            self._sink,
            clock=self.clock,
            common={"source": "agent"},
            opened=self._open.add,
            level=Level.DETAILED,
        )
        self._pending: deque[Span] = deque(maxlen=MAX_PENDING)
        # Wanted once, and not yet taken.
        self._owed: deque[Span] = deque(maxlen=MAX_PENDING)
        # The thread whose spans are owed although tracing is off.
        self._owing = 0
        self._dropped = 0
        self._buffer: SpanBuffer | None = None
        # Set when encoding may cost time: a first process runs, or the end has come.
        self._leisure = asyncio.Event()
        self._first_started = False
        self._closed = False

    def forget(self) -> None:
        """This guest becomes a template: what it has recorded is not its clones', and neither is its boot."""
        if self._buffer is not None:
            self._buffer.close()
        # Whoever waits for spans gets none.
        self._leisure.set()
        self._ending.set()
        self._boot = None
        self.clock.forget()
        self._open.clear()
        # What is still open has the former tracer, whose sink forgets it.
        self._tracer.ended = self._tracer.opened = lambda _: None
        self._begin()

    @property
    def enabled(self) -> bool:
        """Whether spans are made: known to be wanted, not known yet, or for the flight recorder."""
        return self._tracer.level >= 0

    def configure(self, setting: Setting, sandbox_id: str = "", at: int = 0) -> None:
        """Do what the host says, by a call that came `at` (CLOCK_MONOTONIC, ns). Raises InvalidError."""
        parent = SpanContext.from_traceparent(setting.traceparent) if setting.traceparent else None
        if setting.traceparent and parent is None:
            raise InvalidError(f"traceparent {setting.traceparent[:80]!r} is not valid W3C trace context")
        if setting.clock:
            self.clock.set_offset(*setting.clock)
        if sandbox_id:
            self._tracer.common["sandbox_id"] = sandbox_id
        if setting.log_levels:
            from kata_telemetry import logs

            logs.on_spans(setting.log_levels)
        was_enabled, self._enabled = self._enabled, setting.enabled
        self._forward = setting.forward
        self._tracer.level = setting.level if setting.enabled or setting.recorder else Level.OFF
        if parent:
            self._adopt(parent)
        if not setting.enabled:
            self._disable(MAX_RECORDED if setting.recorder else 0, was_enabled=was_enabled)
            return
        if setting.since:
            self._pending = deque(
                (span for span in self._pending if self.clock.to_host(span.start) >= setting.since), MAX_PENDING
            )
            self._boot = None  # what its spans belong to is not there either
        elif self._pending.maxlen != MAX_PENDING:
            self._pending = deque(self._pending, MAX_PENDING)
        if parent is None and self._root is None:
            # Nobody traces but us: the trace is ours, from the kernel's first moment (CLOCK_MONOTONIC 0) on. That is
            # before a clone's time, whose boot is not told: its trace begins with the call that says so.
            start = 1 if self._boot is not None else at or self.clock.now()
            self._root = _trace.root(self._tracer, "rootSpan", start=start)
            self._adopt(self._root)

    def _adopt(self, parent: Span | SpanContext) -> None:
        """What belongs to no call belongs to `parent`; so does what came before anybody said so."""
        first, self.parent = self.parent is None, parent
        if first:
            for span in self._pending:
                if span.parent is None:
                    span.adopt(parent)

    def _disable(self, keep: int, *, was_enabled: bool) -> None:
        """Hand out what was wanted, which ends the stream; keep `keep` of what was not, from now on."""
        # What goes on ends here for the trace: its children may be with the host already.
        for span in list(self._open) if was_enabled else ():
            span.event("tracing was switched off")
            span.finish()
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()
        elif was_enabled:
            # Nobody has taken them yet: whoever comes gets them, and no more.
            self._owed.extend(self._pending)
            self._pending.clear()
            self._leisure.set()
        # A forwarder that is not there is waited for no longer: the runtime gets the rest.
        self._ending.set()
        self._pending = deque(self._pending, keep)

    def records(self, level: Level) -> bool:
        """Whether spans of this level are made."""
        return level <= self._tracer.level

    def begin(
        self, name: str, parent: SpanContext | None, since: int, site: Site, kind: Kind, **attributes: str
    ) -> Span:
        """A span for a call: under the caller's, else under the agent's parent."""
        return site.root(self._tracer, name, parent=parent or self._context(), start=since, kind=kind, **attributes)

    def without_span(self, parent: SpanContext | None) -> AbstractContextManager[Span]:
        """For a call below the trace's level: what is made in it is the caller's child."""
        stand_in = Span(self._tracer, "", None, {}, {})
        stand_in.context = parent or self._context() or stand_in.context
        return use(stand_in)

    def to_host(self, local_ns: int) -> int:
        """Host time (ns) of a CLOCK_MONOTONIC reading; until the runtime has told the offset, by the guest's own
        clock.
        """
        if self.clock.known:
            return self.clock.to_host(local_ns)
        return local_ns + time.time_ns() - time.monotonic_ns()

    def set_offset(self, offset_ns: int, bound_ns: int) -> None:
        """A new reading of the clock's offset to the host."""
        self.clock.set_offset(offset_ns, bound_ns)

    def _context(self) -> SpanContext | None:
        return self.parent.context if isinstance(self.parent, Span) else self.parent

    def first_started(self) -> None:
        """A first process runs: soon tracing may cost time."""
        if not self._first_started:
            self._first_started = True
            asyncio.get_running_loop().call_later(HEAD_START, self._leisure.set)

    def _sink(self, span: Span) -> None:
        self._open.discard(span)
        if self._owing == threading.get_ident():
            self._owed.append(span)
            return
        if self._buffer is not None:
            self._buffer.sink(span)
            return
        if self._enabled and len(self._pending) == MAX_PENDING:
            self._dropped += 1
        self._pending.append(span)

    async def stream(self) -> AsyncGenerator[tuple[bytes, int], None]:
        """Batches (OTLP, dropped spans) for the runtime until `close`, or until tracing is switched off: all, or what
        the trace forwarder did not take.

        Raises PreconditionError for a second caller at a time.
        """
        await self._leisure.wait()
        if not (self._enabled or self._owed):
            return
        batches = self._batches()
        if self._forward and self._dial:
            from kata_agent.server.forwarding import Forwarding

            self._ending = asyncio.Event()
            if self._closed or not self._enabled:
                self._ending.set()
            batches = Forwarding(self._dial, self._ending).run(batches)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    async def _batches(self) -> AsyncGenerator[tuple[bytes, int], None]:
        buffer = self._buffer
        if buffer is None:
            # The imports and the kernel's log take long in an emulated guest; calls must not wait for them.
            await in_thread("tracing", self._prepare)
            buffer = self._buffer or self._make_buffer()
        try:
            async for batch in buffer.drain():
                yield batch.otlp, batch.dropped + self._dropped
                self._dropped = 0
        except RuntimeError as error:
            raise PreconditionError(str(error)) from error

    def _prepare(self) -> None:
        import kata_telemetry.buffer  # noqa: F401 - for _make_buffer

        boot, self._boot = self._boot, None
        if boot and self.parent is not None:
            # Where it was switched off meanwhile, they are wanted all the same; others that end meanwhile are not.
            self._owing = 0 if self._enabled else threading.get_ident()
            try:
                boot(self, self.parent)
            finally:
                self._owing = 0

    def _make_buffer(self) -> "SpanBuffer":
        from kata_telemetry.buffer import SpanBuffer

        buffer = SpanBuffer()
        buffer.enable()
        buffer.begin()
        while self._owed:
            buffer.sink(self._owed.popleft())
        if self._enabled:
            while self._pending:
                buffer.sink(self._pending.popleft())
            self._buffer = buffer
        if self._closed or not self._enabled:
            buffer.close()
        return buffer

    def record(self, name: str, start: int, end: int, parent: Span | SpanContext, **attributes: str | int) -> Span:
        """A span that is already over; local ns."""
        span = self._tracer.start(
            name, parent=parent, start=max(start, 1), attributes={"package": "agent", "subsystem": "boot", **attributes}
        )
        span.finish(at=end)
        return span

    def close(self) -> None:
        """No more spans: `stream` ends after the last one."""
        if self._closed:
            return
        if self._root:
            self._root.finish()
        self._closed = True
        self._ending.set()
        if self._buffer is not None:
            self._buffer.close()
        self._leisure.set()
