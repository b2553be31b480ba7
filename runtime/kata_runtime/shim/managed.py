"""What containerd knows of a process in the guest: a container's first one, or an exec."""

import asyncio
import time

from google.protobuf.timestamp_pb2 import Timestamp

from kata_protos.containerd.types_task_pb2 import CREATED, RUNNING, STOPPED, UNKNOWN, Status
from kata_runtime.oci.spec import Spec
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.hooks import NO_HOOKS
from kata_runtime.sandbox.process import Exit, Process
from kata_runtime.shim.stdio import HostStdio, Names
from kata_runtime.shim.ttrpc.errors import NotFound

__all__ = ["Managed", "ManagedContainer", "ManagedContainers", "ManagedExec"]


class Managed:
    """State and exit as containerd is told them.

    `lock` is held while the state changes and its event is published, so events come in their order. `known` is set
    when the end is.
    """

    def __init__(self, container_id: str, exec_id: str, names: Names) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.names = names
        self.status: Status = UNKNOWN
        self.exit: Exit | None = None
        self.process: Process | None = None
        self.host: HostStdio | None = None
        self.lock = asyncio.Lock()
        self.known = asyncio.Event()
        # Set when all output is with whoever reads it, and the host's ends are closed.
        self.flushed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.what} {Status.Name(self.status)}>"

    @property
    def what(self) -> str:
        """For messages."""
        return f"exec {self.exec_id} of container {self.container_id}" if self.exec_id else self.container_id

    @property
    def exited_at(self) -> Timestamp | None:
        """When it ended; None where it has not."""
        if self.exit is None or not self.exit.at_ns:
            return None
        stamp = Timestamp()
        stamp.FromNanoseconds(self.exit.at_ns)
        return stamp

    @property
    def exit_status(self) -> int:
        """0 where it has not ended."""
        return self.exit.status if self.exit else 0

    def running(self) -> None:
        """It has been started."""
        self.status = RUNNING

    def ended(self, end: Exit) -> None:
        """It has ended."""
        self.status = STOPPED
        self.exit = end
        self.known.set()

    def never_ran(self) -> None:
        """It is let go without having been started: there is no end to tell of, as with runc's shim."""
        self.ended(Exit(0, 0, reason="it was never started"))

    def failed(self) -> None:
        """It could not be started."""
        self.ended(Exit(137, time.time_ns(), reason="it could not be started"))

    async def flush(self) -> None:
        """Let all output leave, then close the host's ends."""
        if self.process is not None:
            await self.process.drain()
        if self.host is not None:
            await self.host.close()
        self.flushed.set()


class ManagedContainer(Managed):
    """A container and its execs. With `owner` the sandbox lives as long as it does."""

    def __init__(self, container_id: str, bundle: str, names: Names, *, owner: bool) -> None:
        super().__init__(container_id, "", names)
        self.bundle = bundle
        self.owner = owner
        self.container: Container | None = None
        self.hooks = NO_HOOKS
        self.execs: dict[str, ManagedExec] = {}

    def created(self, container: Container) -> None:
        """The guest has it."""
        self.container = container
        self.process = container.init
        self.status = CREATED


class ManagedExec(Managed):
    """A process that `start` will run."""

    def __init__(self, container_id: str, exec_id: str, names: Names, spec: Spec) -> None:
        super().__init__(container_id, exec_id, names)
        self.spec = spec
        self.status = CREATED
        # A terminal's size (rows, columns) that came before there was a terminal.
        self.size: tuple[int, int] | None = None


class ManagedContainers(dict[str, ManagedContainer]):
    """Those of one sandbox by their ids, also while they are being made. What is not there is NotFound."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__()
        self._sandbox_id = sandbox_id

    def made(self, container_id: str) -> ManagedContainer:
        """A container that the guest has."""
        found = self.get(container_id)
        if found is None or found.container is None:
            raise NotFound(f"there is no container {container_id} in sandbox {self._sandbox_id}")
        return found

    def process(self, container_id: str, exec_id: str) -> Managed:
        """Its first process or, with an exec's id, that one."""
        container = self.made(container_id)
        if not exec_id:
            return container
        if exec_id not in container.execs:
            raise NotFound(f"container {container_id} has no exec {exec_id}")
        return container.execs[exec_id]

    async def asked(self, container_id: str) -> ManagedContainer:
        """A call that comes while its container is being created waits for the outcome, as with runc's shim.

        nerdctl's `run -i` depends on it: it asks for the task as soon as its stdin ends, and gives up closing it else.
        """
        found = self.get(container_id)
        if found is not None and found.container is None:
            async with found.lock:
                pass
        return self.made(container_id)

    async def asked_process(self, container_id: str, exec_id: str) -> Managed:
        """As `asked`, for a process."""
        await self.asked(container_id)
        return self.process(container_id, exec_id)
