"""Where the spans of one sandbox are kept, and who is told of it."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kata_runtime.config.model import Config
from kata_runtime.errors import HostError
from kata_runtime.sandbox.trace import variables
from kata_runtime.sandbox.trace.verdict import warn_of_loss
from kata_telemetry.clock import Clock
from kata_telemetry.span import SpanContext

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from kata_traces.send.delivery import Link
    from kata_traces.store.writer import StoreWriter

__all__ = ["FLUSH_TIMEOUT", "SandboxStore"]

_log = logging.getLogger("kata.tracing")

# How long the last spans of a guest that is about to be killed are waited for, in seconds. An emulated one needs some.
FLUSH_TIMEOUT = 15.0


class SandboxStore:
    """The store, as soon as somebody wants one (`open`); `writer` is None before."""

    def __init__(self, config: Config, sandbox_id: str, command: str) -> None:
        self.writer: StoreWriter | None = None
        # Whether the trace forwarder knows of the sandbox. The flight recorders' spans always come by the runtime.
        self.announced = False
        # The sandbox's own, as soon as there is anything of a sandbox.
        self.directory: Path | None = None
        self._config = config
        self._id = sandbox_id
        self._command = command
        self._link: Link | None = None

    @property
    def path(self) -> str:
        """Where it is; empty where there is none."""
        return str(self.writer.store.directory) if self.writer else ""

    @property
    def show(self) -> str:
        """The command that shows it."""
        return f"kata-runtime trace show {self._id}"

    def open(self) -> "StoreWriter":
        """The store, made if need be.

        Raises:
            HostError: it can't be made.
        """
        if self.writer is None:
            from kata_traces.store.errors import StoreError
            from kata_traces.store.writer import StoreWriter

            variables.prepare()
            trace_dir = Path(self._config.runtime.trace_dir)
            try:
                self.writer = StoreWriter.open(trace_dir, self._id, name=self._id, command=self._command)
            except StoreError as error:
                raise HostError(str(error), hint="turn tracing off, or correct [runtime] trace_dir") from error
            self._point()
        return self.writer

    def point_from(self, directory: Path) -> None:
        """Leave a link to the store in the sandbox's directory, for whoever tidies up after a killed runtime."""
        self.directory = directory
        self._point()

    def _point(self) -> None:
        if self.directory is not None and self.writer is not None:
            with suppress(OSError):
                (self.directory / "trace").symlink_to(self.writer.store.directory)

    def announce(self, cid: int, clock: Clock, root: SpanContext | None) -> None:
        """Tell the trace forwarder, where it takes the agent's spans, whose they are.

        `cid` is 0 where the guest has a socket of its own; without `root` the agent makes the trace's.

        Raises:
            HostError: it can't be written.
        """
        forwarded = self._config.agent.trace_transport == "forwarder"
        if self.writer is None or self.directory is None or not forwarded:
            return
        from kata_traces.store.announce import Announcement

        announcement = Announcement(
            sandbox_id=self.writer.store.directory.name,
            store=str(self.writer.store.directory),
            since=self.writer.started,
            clock_offset=clock.to_host(0),
            cid=cid,
            trace_id=f"{root.trace_id:032x}" if root else "",
            root_id=f"{root.span_id:016x}" if root else "",
        )
        try:
            announcement.write(self.directory)
        except OSError as error:
            raise HostError(f"{self.directory}: {error.strerror}", hint="is the disk full?") from error
        self.announced = True

    def export(self, *, over: bool = False) -> None:
        """Send it to the configured collector, by a process that outlives this one for a bounded time.

        With a rule of what is kept nothing goes out before the sandbox is `over`: its worth is known only then.
        """
        if self.writer is None or self._link is not None or (self._config.runtime.trace_keep and not over):
            return
        from kata_traces.send import delivery
        from kata_traces.send.settings import SettingsError

        try:
            if to := variables.exporters(self._config.runtime):
                self._link = delivery.start(self.writer.store, to)
                self.writer.on_append = self._link.notify
        except (SettingsError, OSError) as error:
            _log.warning("the trace is not sent to the collector: %s", error)

    def metrics(self, more: "Iterable[Collector]", *, openmetrics: bool) -> str:
        """What `more` and its spans up to now say, as text for Prometheus. Takes a moment."""
        from kata_traces.read.metrics import expose
        from kata_traces.read.trace import load_store

        if self.writer is None:
            return expose([], openmetrics=openmetrics, more=more)
        self.writer.flush(FLUSH_TIMEOUT)
        trace = load_store(self.writer.store)
        return expose([trace] if trace else [], openmetrics=openmetrics, more=more)

    def close(self, outcome: str) -> None:
        """Nothing comes any more; `outcome` says how the sandbox ended."""
        if self.writer is None:
            return
        self.export()  # also where nothing ever started: a failed boot is what people look for
        in_time = self.writer.close(timeout=5.0, outcome=outcome)
        warn_of_loss(self.writer.lost, self.writer.store.directory, in_time=in_time)
        if variables.worth_keeping(self._config.runtime, self.writer.store):
            self.export(over=True)
        if self._link is not None:
            self._link.close()
