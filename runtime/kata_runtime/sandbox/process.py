"""A process of a container: its first one, or one that was added (exec)."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_runtime.errors import SandboxError
from kata_runtime.guest.transport import Transport
from kata_runtime.sandbox.streams import Stdio, Streams
from kata_telemetry.span import NO_SPAN, Level, Site, Span, use

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["Exit", "Process", "ProcessState"]

_log = logging.getLogger("kata.process")
_trace = Site(package="virtcontainers", subsystem="container")


class ProcessState(StrEnum):
    """Where a process is in its life."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


class Exit(NamedTuple):
    """How a process ended: 0-255 (128 + N after signal N), when (ns since the epoch), and whether for want of memory.

    `reason` says why where it was not the process's own doing.
    """

    status: int
    at_ns: int
    oom: bool = False
    reason: str = ""


class Process:
    """One process in the guest, known to the agent by the container's id and an exec id (empty: the first one).

    Every call may raise `AgentError`.
    """

    def __init__(
        self, container_id: str, exec_id: str, agent: "AgentClient", transport: Transport, lifetime: Span = NO_SPAN
    ) -> None:
        """`lifetime` parents the spans that outlast the call which began them: the process, its stdio."""
        self.container_id = container_id
        self.exec_id = exec_id
        self.state = ProcessState.CREATED
        # How it ended, once `known` is set.
        self.end: Exit | None = None
        self.known = asyncio.Event()
        self._agent = agent
        self._transport = transport
        self._lifetime = lifetime
        # What its spans are about.
        self._about: dict[str, Any] = {"container_id": container_id} | ({"exec_id": exec_id} if exec_id else {})
        self._span = NO_SPAN
        self._streams: Streams | None = None
        self._created_ns = time.time_ns()

    def __repr__(self) -> str:
        return f"<Process {self.container_id} {self.exec_id or 'init'} {self.state}>"

    async def connect(self, stdio: Stdio) -> dict[str, int]:
        """Open its stdio streams; the fields of a `StdioPorts`."""
        self._streams = Streams(stdio)
        await self._streams.connect(self._transport)
        return self._streams.ports

    def serve(self) -> None:
        """Begin to copy its stdio: the agent has it now."""
        if self._streams is not None:
            with use(self._lifetime):
                self._streams.serve(self._about)

    def started(self) -> None:
        """It runs."""
        self.state = ProcessState.RUNNING
        with use(self._lifetime):
            self._span = _trace.start("process", level=Level.ESSENTIAL, lasts=True, **self._about)

    async def exec(self, process: Mapping[str, object], stdio: Stdio) -> None:
        """Run it, where it is not the container's first one; `process` is OCI's. If this fails, nothing is left."""
        from kata_protos import agent_pb2 as pb

        if self.state is not ProcessState.CREATED:
            raise SandboxError(f"process {self.exec_id} of container {self.container_id} is {self.state}, not created")
        with _trace.stage("enterContainer", **self._about):
            try:
                request = pb.ExecProcessRequest(
                    container_id=self.container_id,
                    exec_id=self.exec_id,
                    process=json.dumps(process).encode(),
                    stdio=pb.StdioPorts(**await self.connect(stdio)),
                )
                await self._agent.call(self._agent.service.ExecProcess, request)
            except BaseException:
                await self.close()
                raise
        self.serve()
        self.started()

    async def wait(self) -> Exit:
        """Wait for its end; its last output may still be on the way (`drain`)."""
        from kata_protos import agent_pb2 as pb

        with _trace.stage("waitProcess", lasts=True, **self._about) as span:
            request = pb.WaitProcessRequest(container_id=self.container_id, exec_id=self.exec_id)
            answer = await self._agent.call(self._agent.service.WaitProcess, request, timeout=None)
            # The guest's word, kept within what can be.
            at_ns = min(max(answer.exited_at_ns, self._created_ns), time.time_ns())
            end = Exit(answer.status & 0xFF, at_ns, answer.oom_killed)
            span.set(exit_status=end.status)
            self.ended(end)
        return end

    def ended(self, end: Exit) -> None:
        """It has ended, as `wait` or the sandbox knows."""
        self.state = ProcessState.STOPPED
        self.end = end
        self.known.set()
        extra = {"container": self.container_id, "exec": self.exec_id, "status": end.status}
        _log.info("process ended", extra=extra)
        self._span.set(exit_status=end.status)
        if end.oom:
            self._span.event("oom")
        if end.reason:
            self._span.fail(end.reason)
        self._span.finish()

    async def drain(self) -> None:
        """Wait until all that it wrote has been delivered."""
        if self._streams is not None:
            await self._streams.drain()

    async def close(self) -> None:
        """Let go of its stdio, delivered or not. Safe to repeat."""
        self._span.finish()
        if self._streams is not None:
            await self._streams.close()

    async def signal(self, number: int, *, everything: bool = False, ending: bool = False) -> None:
        """Send it a signal, or all processes of its container; with `ending` one that a container's first process has
        no handler for kills it, as SIGTERM does in any case."""
        from kata_protos import agent_pb2 as pb

        request = pb.SignalProcessRequest(
            container_id=self.container_id, exec_id=self.exec_id, signal=number, all=everything, ending=ending
        )
        await self._agent.call(self._agent.service.SignalProcess, request)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        from kata_protos import agent_pb2 as pb

        request = pb.TtyWinResizeRequest(container_id=self.container_id, exec_id=self.exec_id, row=rows, column=columns)
        await self._agent.call(self._agent.service.TtyWinResize, request)

    async def close_stdin(self) -> None:
        """End its input after what has arrived in the guest. Where the host's end can be closed, that is better."""
        from kata_protos import agent_pb2 as pb

        request = pb.CloseStdinRequest(container_id=self.container_id, exec_id=self.exec_id)
        await self._agent.call(self._agent.service.CloseStdin, request)
