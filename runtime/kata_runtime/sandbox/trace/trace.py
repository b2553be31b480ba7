"""The trace of one sandbox: its root and store on the host, and what the agent is told about it.

Either side may trace or not, and that may change while the sandbox runs (`state.Tracing`). The store exists as soon as
one side does; without the runtime's side no span of `kata` is made, and the agent makes the root itself. Where neither
traces, both keep their last spans in memory (`flight_recorder`), and a failed or slow start writes them out.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kata_runtime.config.model import Config
from kata_runtime.errors import AgentError, CommandNotExecutableError, CommandNotFoundError, KataError, SandboxError
from kata_runtime.hypervisor.boot import Boot
from kata_runtime.sandbox.trace import variables
from kata_runtime.sandbox.trace.agent import AgentSide
from kata_runtime.sandbox.trace.boot import BootSpans
from kata_runtime.sandbox.trace.conditions import Conditions
from kata_runtime.sandbox.trace.runtime import RuntimeSide
from kata_runtime.sandbox.trace.state import Tracing, following
from kata_runtime.sandbox.trace.store import FLUSH_TIMEOUT, SandboxStore
from kata_runtime.sandbox.trace.verdict import fail
from kata_telemetry import logs
from kata_telemetry.clock import Clock
from kata_telemetry.span import Level, Span, Tracer

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from kata_protos import agent_pb2 as pb
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.guest.clock import Reading

__all__ = ["SandboxTrace"]

_log = logging.getLogger("kata.tracing")


class SandboxTrace:
    """Use `open()` and, once and whatever happened, `close()`."""

    def __init__(self, config: Config, runtime: RuntimeSide, store: SandboxStore) -> None:
        self._config = config
        self._runtime = runtime
        self._store = store
        self._state = Tracing.of(runtime=False, agent=False, recorder=runtime.recorder is not None)
        self._boot = BootSpans()
        self._agent: AgentSide | None = None
        # Whether a process of it ran.
        self._started = False
        self._dumping: asyncio.Task[None] | None = None
        self._begun = Conditions.sample()
        # One change at a time.
        self._switching = asyncio.Lock()

    @classmethod
    def open(
        cls,
        config: Config,
        sandbox_id: str,
        *,
        command: str,
        start: int = 0,
        carrier: Iterable[tuple[str, str]] | None = None,
    ) -> "SandboxTrace":
        """Begin the sandbox's trace at `start` (CLOCK_MONOTONIC, ns), or now; without tracing this records in memory.

        The caller's trace is continued: that of the metadata of a call (`carrier`), else that of the environment
        (TRACEPARENT), or as OTEL_PROPAGATORS has it.

        Raises:
            HostError: the trace can't be kept.
            ConfigError: a sampler that isn't there.
        """
        runtime, agent = config.runtime.enable_tracing, config.agent.enable_tracing
        wanted = (runtime or agent) and not variables.disabled()
        parent = variables.caller(list(carrier or ()), wanted=wanted)
        command = Path(command).name
        side = RuntimeSide(config.runtime, sandbox_id, command, parent=parent, start=start)
        trace = cls(config, side, SandboxStore(config, sandbox_id, command))
        if wanted and variables.sampled(config.runtime, side.root, parent):
            writer = trace._store.open()
            if runtime:
                side.follow(writer, late=False, resume=False)
            trace._state = Tracing.of(runtime=runtime, agent=agent, recorder=False)
        else:
            side.record()
        logs.set_root(trace.root)
        if config.runtime.trace_log_levels:
            logs.on_spans(config.runtime.trace_log_levels)
        return trace

    @property
    def root(self) -> Span:
        """Its root."""
        return self._runtime.root

    @property
    def tracer(self) -> Tracer:
        """The runtime's."""
        return self._runtime.tracer

    @property
    def clock(self) -> Clock:
        """The runtime's."""
        return self._runtime.tracer.clock

    @property
    def state(self) -> Tracing:
        """Which sides are traced."""
        return self._state

    def _turn(self, *, runtime: bool | None = None, agent: bool | None = None) -> None:
        """The one way from a state into another; None leaves a side as it is."""
        runtime = self._state.runtime if runtime is None else runtime
        agent = self._state.agent if agent is None else agent
        self._state = self._following(runtime=runtime, agent=agent)

    def _following(self, *, runtime: bool, agent: bool) -> Tracing:
        recorder = self._runtime.recorder is not None
        return following(self._state, runtime=runtime, agent=agent, recorder=recorder)

    def record_boot(self, boot: Boot, reading: "Reading | None", error: object = None) -> None:
        """What the host saw of the boot, as spans, see `BootSpans.record`."""
        self._boot.record(boot, reading, self.clock, agent_tells=self._state.agent, error=error)

    def for_agent(self, boot: Span, reading: "Reading") -> "pb.Tracing":
        """What `CreateSandbox` tells the agent; `boot` is the span that its boot belongs to."""
        self._boot.parent = boot if boot.recording else self.root
        return self._setting(self._boot.parent, reading)

    def _setting(self, parent: Span, reading: "Reading | None", *, since: int = 0) -> "pb.Tracing":
        from kata_protos import agent_pb2 as pb

        # An agent that traces alone makes the root itself.
        known = self.tracer.level >= 0 and self._state is not Tracing.AGENT
        return pb.Tracing(
            enabled=self._state.agent,
            traceparent=parent.context.to_traceparent() if known else "",
            clock=pb.Clock(offset_ns=reading.offset_ns, bound_ns=reading.bound_ns) if reading else None,
            level=self._runtime.level,
            recorder=self._runtime.recorder is not None,
            since_ns=since,
            log_levels=self._config.runtime.trace_log_levels,
            transport=pb.Tracing.FORWARDER if self._store.announced else pb.Tracing.RUNTIME,
        )

    def announce(self, cid: int) -> None:
        """Tell the trace forwarder, where it takes the agent's spans, whose they are, see `SandboxStore.announce`."""
        if self._state.agent:
            self._announce(cid)

    def _announce(self, cid: int) -> None:
        self._store.announce(cid, self.clock, self.root.context if self._state.runtime else None)

    def follow(self, agent: "AgentClient") -> None:
        """Begin to take the agent's spans into the store, where they are wanted."""
        self._agent = AgentSide(agent)
        if self._store.writer is None:
            return
        if self._state.agent:
            self._agent.take(self._store.writer)

    def started(self) -> None:
        """The first process runs. From here on writing, and a collector, cost the workload's start nothing."""
        if self._started:
            return
        self._started = True
        if self._store.writer is not None:
            self._store.writer.begin()
        if self._agent is not None:
            self._agent.soon()
        self._begun.note(self.root, self._config.runtime.slow_start_threshold)
        self._runtime.started()
        self._store.export()
        threshold = self._config.runtime.slow_start_threshold
        took = (self.tracer.now() - self.root.start) / 1e9
        if threshold and took > threshold and not self._state.runtime and self._runtime.recorder is not None:
            self._dumping = asyncio.create_task(self._dump_slow_start(took))

    async def _dump_slow_start(self, took: float) -> None:
        try:
            await self.switch(runtime=True, agent=True)
            _log.warning("the start took %.1f s; trace: %s", took, self._store.show)
            await self.switch(runtime=False, agent=False)
        except KataError as error:
            _log.warning("the trace of the slow start (%.1f s) is not whole: %s", took, error)

    async def failing(self, error: BaseException) -> None:
        """The sandbox is about to end because of `error`: the flight recorders, where they run, become a trace.

        A `KataError` says where the trace is.
        """
        if self._agent is not None and isinstance(error, Exception):
            self._leave_boot_to_agent()
        if self._dump(error) and self._agent is not None:
            with suppress(KataError):
                await self.switch(runtime=True, agent=True)

    def _dump(self, error: BaseException | None) -> bool:
        """Begin a trace that was not wanted before; whether there is one."""
        if self._state is not Tracing.RECORDING or self._store.writer is not None:
            return False
        # A cancellation is no failure, and neither is a command that isn't there, or a mistake of whoever asked.
        kinds = (CommandNotFoundError, CommandNotExecutableError)
        if self._store.directory is None or not isinstance(error, Exception) or isinstance(error, kinds):
            return False
        try:
            self._follow()
        except KataError as trouble:
            _log.info("the failure left no trace: %s", trouble)
            return False
        if isinstance(error, KataError):
            error.hint = "; ".join(filter(None, (error.hint, f"trace: {self._store.show}")))
        else:
            _log.warning("failed: %s; trace: %s", error, self._store.show)
        return True

    def _follow(self) -> None:
        """Put the runtime's spans into the store."""
        resume = self._store.writer is not None
        late = self._store.directory is not None
        self._runtime.follow(self._store.open(), late=late, resume=resume)
        self._turn(runtime=True)

    async def switch(
        self,
        *,
        runtime: bool,
        agent: bool,
        level: Level | None = None,
        reading: "Reading | None" = None,
        cid: int | None = None,
    ) -> None:
        """Trace these sides from now on, up to `level`. What was recorded in memory before is included.

        One sandbox makes one trace, however often it is switched. `reading` is a new one of the guest's clock. With
        `cid`, as for `announce`, the agent's spans go to the trace forwarder where the configuration says so.

        Raises:
            SandboxError: the agent's trace is one of its own, which the runtime can't join.
            HostError: the trace can't be kept.
            AgentError: the agent does not answer.
        """
        async with self._switching:
            if variables.disabled() and (runtime or agent):
                raise SandboxError(
                    "OTEL_SDK_DISABLED is true: nothing of this sandbox is traced", hint="start it without"
                )
            self._following(runtime=runtime, agent=agent)
            if level is not None:
                self._runtime.level = level
            if agent and self._agent is not None:
                self._leave_boot_to_agent()
            if runtime:
                self._begin_runtime()
            if agent and not self._state.agent and cid is not None:
                self._announce(cid)
            await self._switch_agent(agent, reading)
            if not runtime and self._state.runtime:
                await self._end_runtime()

    def _leave_boot_to_agent(self) -> None:
        if self._runtime.recorder is not None and self._store.writer is None:
            self._boot.leave_to_agent(self._runtime.recorder)

    def _begin_runtime(self) -> None:
        if not self._state.runtime:
            self._follow()
        self.tracer.level = self._runtime.level
        self._store.open().begin()
        if self._started:
            self._store.export()

    async def _end_runtime(self) -> None:
        writer = self._store.open()
        self._turn(runtime=False)
        self._runtime.leave(writer)
        await asyncio.to_thread(writer.flush, FLUSH_TIMEOUT)

    async def _switch_agent(self, on: bool, reading: "Reading | None") -> None:
        was = self._state
        if self._agent is None or not (on or was.agent):
            return
        since = 0
        if on and not was.agent:
            since = self.clock.to_host(self.tracer.now()) if self._agent.taken else self._runtime.since
            # Then the host has told of the boot already, and any moment does: the agent leaves it out.
            since = since or int(self._boot.told)
        self._turn(agent=on)
        parent = self._boot.parent if self._boot.parent.kept and not since else self.root
        try:
            await self._agent.tell(self._setting(parent, reading, since=since), self.root)
        except AgentError:
            self._turn(agent=was.agent)
            raise
        if on:
            self._agent.take(self._store.open())
        else:
            await self._agent.drained()

    def status(self) -> dict[str, object]:
        """What is traced, for the management socket."""
        return {
            "runtime": self._state.runtime,
            "agent": self._state.agent,
            "level": self._runtime.level.name.lower(),
            "flight_recorder": self._runtime.recorder is not None,
            "trace_id": f"{self.root.context.trace_id:032x}",
            "store": self._store.path,
        }

    def metrics(self, *more: "Collector", openmetrics: bool) -> str:
        """What `more` and its spans up to now say, as text for Prometheus. Takes a moment."""
        return self._store.metrics(more, openmetrics=openmetrics)

    def point_from(self, directory: Path) -> None:
        """Leave a link to the store in the sandbox's directory, for whoever tidies up after a killed runtime."""
        self._store.point_from(directory)

    async def finish_agent(self) -> None:
        """Let the agent end its part and wait, within a bound, for its last spans."""
        if self._dumping is not None:
            await asyncio.wait([self._dumping], timeout=FLUSH_TIMEOUT)
        if self._agent is not None:
            await self._agent.finish()

    def close(self, outcome: str, error: BaseException | None = None) -> None:
        """End the root and the store; `outcome` says how the sandbox ended."""
        self._dump(error)
        self._begun.note(self.root)
        life = self._runtime.life
        fail(life, error)
        life.finish()
        self.root.finish()
        self._store.close(outcome)
