"""A container of a sandbox, from the host's point of view."""

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from kata_runtime.errors import SandboxError
from kata_runtime.guest.dial import dial
from kata_runtime.guest.stdio import STDIO_PORT, copy_in, copy_out
from kata_runtime.guest.transport import Transport
from kata_runtime.sandbox.rootfs import Rootfs, share_rootfs
from kata_runtime.sandbox.state import SandboxDirectory, valid_id
from kata_telemetry.span import NO_SPAN, Site, Span, use

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["Container", "ContainerState", "Stdio"]

_trace = Site(package="virtcontainers", subsystem="container")


class ContainerState(StrEnum):
    """The states of the OCI runtime specification."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Stdio:
    """The host's descriptors of a process's stdio; None where it has none. A terminal has no stderr."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Streams:
    """The vsock streams of one process and the tasks that serve them."""

    def __init__(self, stdio: Stdio) -> None:
        self._stdio = stdio
        self._sockets: dict[str, socket.socket] = {}
        self.ports: dict[str, int] = {}
        self._outputs: list[asyncio.Task[int]] = []
        self._input: asyncio.Task[int] | None = None

    async def connect(self, transport: Transport) -> None:
        """Open the streams, all at once; their port numbers go into the agent's call.

        Raises:
            AgentError: the agent does not take them.
        """
        wanted = [name for name in ("stdin", "stdout", "stderr") if getattr(self._stdio, name) is not None]
        with _trace.span("connectStdio"):
            opened = await asyncio.gather(*(self._open(transport, name) for name in wanted), return_exceptions=True)
        for failure in filter(None, opened):
            raise failure

    async def _open(self, transport: Transport, name: str) -> None:
        self._sockets[name], self.ports[f"{name}_port"] = await dial(transport, STDIO_PORT, name)

    def serve(self) -> None:
        """Begin to copy."""
        for name in ("stdout", "stderr"):
            fd = getattr(self._stdio, name)
            if fd is not None:
                self._outputs.append(asyncio.create_task(copy_out(self._sockets.pop(name), fd, name)))
        if self._stdio.stdin is not None:
            self._input = asyncio.create_task(copy_in(self._stdio.stdin, self._sockets.pop("stdin")))

    async def drain(self) -> None:
        """Wait until all output has been delivered."""
        if self._outputs:
            await asyncio.wait(self._outputs)
        self.close()

    def close(self) -> None:
        """Stop copying. Safe to repeat."""
        for task in (*self._outputs, *([self._input] if self._input else [])):
            task.cancel()
        for unused in self._sockets.values():
            unused.close()
        self._sockets.clear()


class Container:
    """One container. Calls are guarded by its state; every call may raise `AgentError`."""

    def __init__(
        self,
        container_id: str,
        agent: "AgentClient",
        transport: Transport,
        directory: SandboxDirectory,
        lifetime: Span = NO_SPAN,
    ) -> None:
        """`lifetime` parents the spans that outlast the call which began them: the process, its stdio."""
        self.id = valid_id(container_id)
        self.state = ContainerState.CREATING
        self._agent = agent
        self._transport = transport
        self._directory = directory
        self._lifetime = lifetime
        self._process = NO_SPAN
        self._stack = ExitStack()
        self._streams: Streams | None = None

    def __repr__(self) -> str:
        return f"<Container {self.id} {self.state}>"

    async def create(self, spec: Mapping[str, object], rootfs: Rootfs, stdio: Stdio, *, timeout: float) -> None:
        """Share its root filesystem and let the agent create it; nothing of it runs yet.

        `spec` is an OCI runtime configuration whose root.path is already the guest's. If this fails, nothing is left.
        """
        from kata_protos import agent_pb2 as pb

        self._require(ContainerState.CREATING)
        with _trace.span("createContainer", container_id=self.id):
            try:
                self._stack.enter_context(share_rootfs(self._directory, self.id, rootfs))
                self._streams = Streams(stdio)
                self._stack.callback(self._streams.close)
                await self._streams.connect(self._transport)
                request = pb.CreateContainerRequest(
                    container_id=self.id,
                    oci=json.dumps(spec).encode(),
                    stdio=pb.StdioPorts(**self._streams.ports),
                )
                await self._agent.call(self._agent.service.CreateContainer, request, timeout=timeout)
            except BaseException:
                self._stack.close()
                raise
        with use(self._lifetime):
            self._streams.serve()
        self.state = ContainerState.CREATED

    async def start(self) -> None:
        """Run its process."""
        from kata_protos import agent_pb2 as pb

        self._require(ContainerState.CREATED)
        with _trace.span("startContainer", container_id=self.id):
            await self._agent.call(self._agent.service.StartContainer, pb.StartContainerRequest(container_id=self.id))
        with use(self._lifetime):
            self._process = _trace.start("process", container_id=self.id)
        self.state = ContainerState.RUNNING

    async def wait(self) -> int:
        """Wait for the end of its process and of its output; the exit code (128 + N after signal N)."""
        from kata_protos import agent_pb2 as pb

        with _trace.span("waitProcess", container_id=self.id) as span:
            request = pb.WaitProcessRequest(container_id=self.id)
            answer = await self._agent.call(self._agent.service.WaitProcess, request, timeout=None)
            self.state = ContainerState.STOPPED
            span.set(exit_status=answer.status)
            self._process.set(exit_status=answer.status)
            if answer.oom_killed:
                self._process.event("oom")
            self._process.finish()
            if self._streams is not None:
                await self._streams.drain()
        return int(answer.status)

    async def signal(self, number: int, *, everything: bool = False) -> None:
        """Send a signal to its process, or to all of its processes."""
        from kata_protos import agent_pb2 as pb

        request = pb.SignalProcessRequest(container_id=self.id, signal=number, all=everything)
        await self._agent.call(self._agent.service.SignalProcess, request)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        from kata_protos import agent_pb2 as pb

        request = pb.TtyWinResizeRequest(container_id=self.id, row=rows, column=columns)
        await self._agent.call(self._agent.service.TtyWinResize, request)

    async def remove(self, *, timeout: float = 10.0) -> None:
        """Kill what is left of it in the guest and unshare its root filesystem; the host's part happens in any case."""
        from kata_protos import agent_pb2 as pb

        try:
            with _trace.span("stopContainer", container_id=self.id):
                request = pb.RemoveContainerRequest(container_id=self.id, timeout=int(timeout))
                await self._agent.call(self._agent.service.RemoveContainer, request, timeout=timeout + 5)
        finally:
            self._process.finish()
            self.state = ContainerState.STOPPED
            self._stack.close()

    def _require(self, state: ContainerState) -> None:
        if self.state is not state:
            raise SandboxError(f"container {self.id} is {self.state}, not {state}")
