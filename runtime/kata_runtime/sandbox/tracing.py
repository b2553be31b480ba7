"""The trace of one sandbox: its root and store on the host, and what the agent is told about it.

Either side may trace or not. The store exists as soon as one does; without the runtime's side no span of `kata` is
made, and the agent makes the root itself.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kata_runtime.config.model import Config
from kata_runtime.errors import HostError
from kata_runtime.hypervisor.qemu import BootStage
from kata_telemetry.clock import HostClock
from kata_telemetry.propagation import from_environment
from kata_telemetry.span import NO_SPAN, Site, Span, SpanContext, Tracer

if TYPE_CHECKING:
    from kata_protos import agent_pb2 as pb
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.guest.clock import Reading
    from kata_telemetry.export import Link
    from kata_telemetry.writer import StoreWriter

__all__ = ["SandboxTrace"]

_trace = Site(package="runtime", subsystem="runtime")
_boot = Site(package="virtcontainers", subsystem="boot")
_log = logging.getLogger("kata.tracing")

# How long the last spans of a guest that is about to be killed are waited for, in seconds. An emulated one needs some.
_FLUSH_TIMEOUT = 15.0


class SandboxTrace:
    """Use `open()` and, once and whatever happened, `close()`."""

    def __init__(self, config: Config, writer: "StoreWriter | None") -> None:
        self._config = config
        self._writer = writer
        self._spans: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self.root: Span = NO_SPAN
        self.tracer: Tracer | None = None
        if writer is not None and config.runtime.enable_tracing:
            self.tracer = writer.tracer("kata", source="runtime")
        self.clock = self.tracer.clock if self.tracer else HostClock()

    @classmethod
    def open(
        cls, config: Config, sandbox_id: str, *, command: str, start: int = 0, parent: SpanContext | None = None
    ) -> "SandboxTrace":
        """Begin the sandbox's trace at `start` (CLOCK_MONOTONIC, ns), or now; without tracing this does nothing.

        The caller's trace is continued: `parent`, else a W3C parent in the environment (TRACEPARENT).

        Raises:
            HostError: the trace can't be kept.
        """
        if not (config.runtime.enable_tracing or config.agent.enable_tracing):
            return cls(config, None)
        from kata_telemetry.store import StoreError
        from kata_telemetry.writer import StoreWriter

        try:
            writer = StoreWriter.open(Path(config.runtime.trace_dir), sandbox_id, name=sandbox_id, command=command)
        except StoreError as error:
            raise HostError(str(error), hint="turn tracing off, or correct [runtime] trace_dir") from error
        trace = cls(config, writer)
        if trace.tracer is not None:
            parent = parent or from_environment(os.environ)
            trace.root = _trace.root(trace.tracer, "rootSpan", parent=parent, start=start, command=Path(command).name)
        return trace

    def record_boot(self, marks: Mapping[BootStage, int], reading: "Reading | None") -> None:
        """What the host saw of the boot, as spans; the agent's own account of it, where there is one, is finer.

        `reading` is the offset of the guest's clock, which begins with the kernel. Without it the kernel begins where
        the firmware's last line was read: after that the firmware still copies the kernel and the initramfs, and on a
        busy host the line is read late.
        """
        marks = dict(marks)
        if reading is not None and BootStage.FIRMWARE in marks:
            kernel = reading.offset_ns - self.clock.to_host(0)
            marks[BootStage.KERNEL] = max(kernel, marks[BootStage.FIRMWARE])
        stages = [stage for stage in BootStage if stage in marks]
        names = {BootStage.QEMU: "boot.qemu", BootStage.FIRMWARE: "boot.firmware"}
        if not self._config.agent.enable_tracing:
            names |= {
                BootStage.KERNEL: "boot.kernel",
                BootStage.INITRAMFS: "boot.initramfs",
                BootStage.AGENT: "boot.agent",
            }
        for stage, following in itertools.pairwise(stages):
            if stage in names:
                _boot.record(names[stage], marks[stage], marks[following])

    def for_agent(self, parent: SpanContext, reading: "Reading") -> "pb.Tracing":
        """What `CreateSandbox` tells the agent; `parent` is the span that its boot belongs to."""
        from kata_protos import agent_pb2 as pb

        return pb.Tracing(
            enabled=self._config.agent.enable_tracing,
            traceparent=parent.to_traceparent() if self.tracer else "",
            clock=pb.Clock(offset_ns=reading.offset_ns, bound_ns=reading.bound_ns),
            transport=pb.Tracing.FORWARDER if self._forwarded else pb.Tracing.RUNTIME,
        )

    @property
    def _forwarded(self) -> bool:
        return self._config.agent.enable_tracing and self._config.agent.trace_transport == "forwarder"

    def announce(self, directory: Path, cid: int) -> None:
        """Tell the trace forwarder, where it takes the agent's spans, whose they are; `cid` is 0 where the guest has a
        socket of its own.

        Raises:
            HostError: it can't be written.
        """
        if self._writer is None or not self._forwarded:
            return
        from kata_telemetry.announce import Announcement

        context = self.root.context
        announcement = Announcement(
            sandbox_id=self._writer.store.directory.name,
            store=str(self._writer.store.directory),
            since=self._writer.started,
            clock_offset=self.clock.to_host(0),
            cid=cid,
            trace_id=f"{context.trace_id:032x}" if self.tracer else "",
            root_id=f"{context.span_id:016x}" if self.tracer else "",
        )
        try:
            announcement.write(directory)
        except OSError as error:
            raise HostError(f"{directory}: {error.strerror}", hint="is the disk full?") from error

    def follow(self, agent: "AgentClient") -> None:
        """Begin to take the agent's spans into the store."""
        if self._writer is None:
            return
        self._writer.begin()
        if self._config.agent.enable_tracing:
            self._spans = asyncio.create_task(self._take(agent, self._writer))

    async def finish_agent(self, agent: "AgentClient") -> None:
        """Let the agent end its part and wait, within a bound, for its last spans."""
        if self._spans is None:
            return
        from kata_protos import agent_pb2 as pb
        from kata_runtime.errors import AgentError

        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                request = pb.DestroySandboxRequest()
                await agent.call(agent.service.DestroySandbox, request, timeout=_FLUSH_TIMEOUT)
                with _trace.span("awaitSpans"):
                    await asyncio.shield(self._spans)
        except (AgentError, TimeoutError) as error:
            _log.warning("the agent's last spans did not come", extra={"error": str(error)})
        finally:
            self._spans.cancel()

    def export(self) -> None:
        """Send the store to the configured collector, by a process that outlives this one for a bounded time."""
        if self._writer is None or self._link is not None:
            return
        from kata_telemetry import export
        from kata_telemetry.collector import CollectorSettings, SettingsError

        runtime = self._config.runtime
        try:
            settings = CollectorSettings.resolve(
                os.environ,
                endpoint=runtime.otlp_endpoint,
                protocol=runtime.otlp_protocol,
                headers=runtime.headers(),
                timeout=runtime.otlp_timeout,
                certificate=runtime.otlp_certificate,
                client_certificate=runtime.otlp_client_certificate,
                client_key=runtime.otlp_client_key,
            )
            if settings is not None:
                self._link = export.start(self._writer.store, settings)
                self._writer.on_append = self._link.notify
        except (SettingsError, OSError) as error:
            _log.warning("the trace is not sent to the collector: %s", error)

    def close(self, outcome: str, error: BaseException | None = None) -> None:
        """End the root and the store; `outcome` says how the sandbox ended."""
        if error is not None:
            self.root.fail(error)
        self.root.finish()
        if self._writer is None:
            return
        self.export()  # also where nothing ever started: a failed boot is what people look for
        if not self._writer.close(timeout=5.0, outcome=outcome):
            _log.warning("the trace could not be written in time")
        if self._link is not None:
            self._link.close()

    async def _take(self, agent: "AgentClient", writer: "StoreWriter") -> None:
        async for batch in agent.spans():
            writer.write_otlp(batch.otlp, dropped=batch.dropped)
