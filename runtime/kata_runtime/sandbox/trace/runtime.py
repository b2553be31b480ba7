"""The runtime's side of a sandbox's trace: its tracer, its root, and where its spans go."""

from typing import TYPE_CHECKING

from kata_runtime.config.model import RuntimeConfig
from kata_runtime.sandbox.trace import variables
from kata_telemetry.recorder import Recorder
from kata_telemetry.span import Level, Site, Span, SpanContext, Tracer, use

if TYPE_CHECKING:
    from kata_traces.store.writer import StoreWriter

__all__ = ["RuntimeSide"]

_trace = Site(package="runtime", subsystem="runtime")


class RuntimeSide:
    """Spans go nowhere at first, then to the flight `recorder`, if there is one, or to a store.

    `since` is the moment (host time, ns) from which on the store has all of them; 0: always.
    """

    def __init__(
        self, config: RuntimeConfig, sandbox_id: str, command: str, *, parent: SpanContext | None, start: int
    ) -> None:
        """The root begins at `start` (CLOCK_MONOTONIC, ns), below `parent`."""
        leaves = config.trace_root == "start"
        common = {"source": "runtime", "sandbox_id": sandbox_id}
        self.tracer = Tracer("kata", _nowhere, common=common, level=Level.OFF, leaves=leaves)
        self.level = Level.of(config.trace_level)
        self.recorder = Recorder() if config.flight_recorder and not variables.disabled() else None
        self.root = _trace.root(self.tracer, "rootSpan", parent=parent, start=start, command=command)
        if leaves:
            self.root.set(trace_root="start")
        self.since = 0
        self._started = False

    def record(self) -> None:
        """Keep the last spans in memory."""
        if self.recorder is not None:
            self.recorder.attach(self.tracer)
            self.recorder.opened(self.root)
            self.tracer.level = self.level

    def follow(self, writer: "StoreWriter", *, late: bool, resume: bool) -> None:
        """Put the spans into the store. `late`: the sandbox has begun before; `resume`: the store has its begin."""
        if late:
            known = self.recorder.since() if self.recorder and not resume else self.tracer.now()
            self.since = self.tracer.clock.to_host(known) if known else 0
        if self.tracer.level is Level.OFF and self._started and not (resume or self.root.end):
            self.root.start = self.tracer.now()  # of what was before, nothing is known
        # From here on it is recorded, whatever a caller said of its own.
        context = self.root.context
        self.root.context = context._replace(flags=context.flags | 1)
        self.tracer.level = self.level
        writer.follow(self.tracer, self.root, self.recorder, resume=resume)
        self._live()

    def leave(self, writer: "StoreWriter") -> None:
        """Put no more spans into the store."""
        writer.leave(self.tracer, self.recorder, self.level if self.recorder else Level.OFF)

    def started(self) -> None:
        """The first process runs."""
        self._started = True
        self._live()

    def _live(self) -> None:
        """Where the root is about the start only: end it, and let the sandbox's life be a leaf beside what comes."""
        if self.tracer.leaves and self._started:
            if self.tracer.lifetime is None and self.tracer.level >= 0:
                with use(self.root):
                    self.tracer.lifetime = _trace.start("sandbox", level=Level.ESSENTIAL, lasts=True)
            self.root.finish()

    @property
    def life(self) -> Span:
        """The span that lasts as long as the sandbox."""
        return self.tracer.lifetime or self.root


def _nowhere(_span: Span) -> None:
    pass
