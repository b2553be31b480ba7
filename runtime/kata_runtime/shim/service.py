"""The seam between containerd's services and the sandbox: what an implementation has to offer, and what it is given.

Messages are containerd's own. Errors are the exceptions of `ttrpc.errors`; containerd's clients act on their codes:

    NotFound            no such container or exec (after `delete` too)
    AlreadyExists       the id is taken
    FailedPrecondition  not in this state (start of what runs, delete of what runs, …)
    InvalidArgument     the request itself
    Unimplemented       never in this runtime (checkpoint)

Calls come at the same time, each in a task of its own that is cancelled when its deadline passes or containerd goes
away.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_protos.containerd import sandbox_pb2 as sandbox
from kata_protos.containerd import task_pb2 as task
from kata_runtime.shim.launch import Launch
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.span import NO_SPAN, Span

__all__ = ["OpenService", "SandboxService", "Shim", "TaskService"]


@dataclass(frozen=True)
class Shim:
    """What the daemon gives to the service.

    `publish(topic, event)` queues an event for containerd, in the order of the calls, and never waits. `stop()` ends
    the daemon once the calls that are running have been answered.
    """

    launch: Launch
    publish: Callable[[str, Message], None]
    stop: Callable[[], None]


class SandboxService(ABC):
    """`containerd.runtime.sandbox.v1.Sandbox`; containerd speaks it to version 3 shims only."""

    @abstractmethod
    async def create_sandbox(self, request: sandbox.CreateSandboxRequest) -> sandbox.CreateSandboxResponse: ...
    @abstractmethod
    async def start_sandbox(self, request: sandbox.StartSandboxRequest) -> sandbox.StartSandboxResponse: ...
    @abstractmethod
    async def platform(self, request: sandbox.PlatformRequest) -> sandbox.PlatformResponse: ...
    @abstractmethod
    async def stop_sandbox(self, request: sandbox.StopSandboxRequest) -> sandbox.StopSandboxResponse: ...
    @abstractmethod
    async def wait_sandbox(self, request: sandbox.WaitSandboxRequest) -> sandbox.WaitSandboxResponse: ...
    @abstractmethod
    async def sandbox_status(self, request: sandbox.SandboxStatusRequest) -> sandbox.SandboxStatusResponse: ...
    @abstractmethod
    async def ping_sandbox(self, request: sandbox.PingRequest) -> sandbox.PingResponse: ...
    @abstractmethod
    async def shutdown_sandbox(self, request: sandbox.ShutdownSandboxRequest) -> sandbox.ShutdownSandboxResponse: ...
    @abstractmethod
    async def sandbox_metrics(self, request: sandbox.SandboxMetricsRequest) -> sandbox.SandboxMetricsResponse: ...


class TaskService(ABC):
    """`containerd.task.v2.Task` and `.v3.Task`, which are the same.

    Events are due in this order: create, start, (exec-added, exec-started,) exit, delete; no exit before its start.
    `sandbox` is the sandbox service, where the implementation has one.
    """

    sandbox: SandboxService | None = None

    @property
    def needed(self) -> bool:
        """Whether something is here that a client may come back for: a container, ended or not, or a sandbox."""
        return True

    def enter(self, call: Call) -> Span:
        """A call comes; returns the span under which it is recorded. `call.parent` is the caller's own.

        Raises:
            KataError: the call can't be served; this is its answer.
        """
        return NO_SPAN

    def close_trace(self) -> None:  # noqa: B027 - most have none
        """All is over, the last event included."""

    @abstractmethod
    async def state(self, request: task.StateRequest) -> task.StateResponse:
        """Of a container, or of an exec where `exec_id` is set (so everywhere)."""

    @abstractmethod
    async def create(self, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        """Make everything ready up to the container's first process, which `start` starts."""

    @abstractmethod
    async def start(self, request: task.StartRequest) -> task.StartResponse:
        """Start the container's first process, or an exec."""

    @abstractmethod
    async def delete(self, request: task.DeleteRequest) -> task.DeleteResponse:
        """Free what has stopped."""

    @abstractmethod
    async def pids(self, request: task.PidsRequest) -> task.PidsResponse:
        """The processes in the container."""

    @abstractmethod
    async def pause(self, request: task.PauseRequest) -> Empty:
        """Freeze the container."""

    @abstractmethod
    async def resume(self, request: task.ResumeRequest) -> Empty:
        """Let it go on."""

    @abstractmethod
    async def checkpoint(self, request: task.CheckpointTaskRequest) -> Empty:
        """Write the container's state to disk."""

    @abstractmethod
    async def kill(self, request: task.KillRequest) -> Empty:
        """Send a signal to a process, or to all of the container."""

    @abstractmethod
    async def exec(self, request: task.ExecProcessRequest) -> Empty:
        """Prepare one more process, which `start` starts. `spec` holds the OCI process as JSON."""

    @abstractmethod
    async def resize_pty(self, request: task.ResizePtyRequest) -> Empty:
        """Tell a process's terminal its size (columns, rows)."""

    @abstractmethod
    async def close_io(self, request: task.CloseIORequest) -> Empty:
        """The client has closed the process's stdin."""

    @abstractmethod
    async def update(self, request: task.UpdateTaskRequest) -> Empty:
        """Change limits. `resources` holds OCI's LinuxResources as JSON."""

    @abstractmethod
    async def wait(self, request: task.WaitRequest) -> task.WaitResponse:
        """Return when a process has ended, at once if it has; any number may wait."""

    @abstractmethod
    async def stats(self, request: task.StatsRequest) -> task.StatsResponse:
        """The container's metrics (`io.containerd.cgroups.v2.Metrics`)."""

    @abstractmethod
    async def connect(self, request: task.ConnectRequest) -> task.ConnectResponse:
        """Who the shim is; also asked by a containerd that comes back."""

    @abstractmethod
    async def shutdown(self, request: task.ShutdownRequest) -> Empty:
        """End the shim (`Shim.stop`), unless other containers need it."""


# Opens the service for the time of the daemon's life.
OpenService = Callable[[Shim], AbstractAsyncContextManager[TaskService]]
