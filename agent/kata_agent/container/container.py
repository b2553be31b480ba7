"""One container: from crun create to its removal.

Calls on different containers never wait for each other. Within one, what changes its life (start, pause, remove…) goes
one at a time; exec, signal, wait and stats don't queue.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from signal import NSIG
from typing import Final, NamedTuple

from kata_agent.container.cgroup import Cgroup
from kata_agent.container.crun import Crun, exec_failure, last_message
from kata_agent.container.limits import Guest, fit_resources
from kata_agent.container.placement import NOWHERE, Placement, take_placement
from kata_agent.container.spec import Spec
from kata_agent.errors import (
    AgentError,
    AlreadyExistsError,
    CrunError,
    NotFoundError,
    PreconditionError,
    ResourceError,
    TimedOutError,
)
from kata_agent.guest.mounts import Mounts
from kata_agent.process.process import Exit, Ports, Process, Stdio
from kata_agent.process.pump import PumpThread
from kata_agent.process.reaper import Child, Reaper
from kata_agent.process.sockets import HostSocket, SocketRoom
from kata_agent.process.streams import StreamRoom
from kata_common.documents import parse_json
from kata_telemetry.span import Site

__all__ = ["Container", "State", "Tools"]

_trace = Site(package="container", subsystem="container")

MAX_EXECS: Final = 1024
# How many exec'd processes that have ended are remembered, for late WaitProcess calls.
MAX_ENDED: Final = 256
# Seconds that RemoveContainer gives output that the host hasn't read yet.
FLUSH_WITHIN: Final = 5.0
SIGKILL: Final = 9
MAX_TERMINATION: Final = 4096


class State(StrEnum):
    """Where a container is in its life."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    REMOVING = "removing"


class Tools(NamedTuple):
    """What containers of one sandbox share."""

    reaper: Reaper
    crun: Crun
    room: StreamRoom
    pumps: PumpThread
    # Bundles are made below this, one directory for each container.
    bundles: Path
    # The cgroup file system's root, and below it the parent of the containers' cgroups ("/kata").
    cgroups: Path
    parent: str
    sockets: SocketRoom
    # What undoes containers that could not be made. It goes on whoever waits for it, so it must end before the reaper.
    undoing: set[asyncio.Task[None]]

    async def undone(self) -> None:
        """Wait until nothing is being undone."""
        if self.undoing:
            await asyncio.wait(self.undoing)


class Container:
    """Made by `Container.create`; every method raises errors of kata_agent.errors."""

    def __init__(self, container_id: str, tools: Tools, mounts: Mounts) -> None:
        self.id = container_id
        self.state = State.CREATING
        self.mounts = mounts
        self.cgroup = Cgroup(tools.cgroups / tools.parent.strip("/") / container_id)
        self._tools = tools
        self._bundle = tools.bundles / container_id
        self._init: Process | None = None
        self._execs: dict[str, Process] = {}
        self._launched = 0
        self._has_hooks = False
        # Where exec'd processes run that don't say it themselves (OCI's process.execCPUAffinity of the container).
        self._placement = NOWHERE
        self._changing = asyncio.Lock()

    @property
    def _log(self) -> Path:
        return self._bundle / "crun.log"

    @property
    def init(self) -> Process:
        if self._init is None:
            raise PreconditionError(f"container {self.id} is still being created")
        return self._init

    async def create(self, spec: Spec, ports: Ports, placement: Placement = NOWHERE) -> None:
        """crun create. Whatever fails, nothing is left."""
        async with self._changing:
            try:
                with _trace.span("write_bundle"):
                    self._bundle.mkdir(mode=0o700, parents=True)
                    # Only `crun start` runs these.
                    self._has_hooks = bool(spec.get("hooks"))
                    config = self._bundle / "config.json"
                    config.write_text(json.dumps(spec))
                self._init = await self._launch(
                    self.id,
                    "create",
                    [f"--bundle={self._bundle}"],
                    ports,
                    terminal=bool(spec["process"].get("terminal")),
                )
                placement.prioritize(self._init.pid)
                self._placement = placement
            except BaseException:
                undoing = asyncio.create_task(self._scrap(), name=f"undo {self.id}")
                self._tools.undoing.add(undoing)
                undoing.add_done_callback(self._tools.undoing.discard)
                await asyncio.shield(undoing)
                raise
            self.state = State.CREATED

    def listen(self, sockets: Sequence[HostSocket]) -> None:
        """Have its clients of these connected to the host's until it is removed. Raises InvalidError, SetupError."""
        self._tools.sockets.open(self.id, sockets)

    async def _launch(
        self,
        name: str,
        command: str,
        arguments: list[str],
        ports: Ports,
        *,
        terminal: bool,
        placement: Placement = NOWHERE,
    ) -> Process:
        """Make a process by crun, claim it, connect its stdio."""
        self._launched += 1
        number = self._launched
        pid_file = self._bundle / f"pid.{number}"
        log = self._bundle / f"log.{number}"
        with _trace.span("open_stdio", terminal=terminal):
            stdio = await Stdio.open(
                ports,
                self._tools.room,
                self._tools.pumps,
                terminal=terminal,
                console=self._tools.bundles / f".{id(self):x}.{number}",
            )
        receiver = asyncio.create_task(stdio.receive_master()) if terminal else None
        try:
            options = [f"--pid-file={pid_file}", *arguments]
            if stdio.console:
                options.append(f"--console-socket={stdio.console}")
            before = self.cgroup.oom_kills()
            with self._tools.reaper.expected():
                await self._tools.crun.run(
                    command, *options, container=self.id, log=log, stdio=stdio.far, placement=placement
                )
                with _trace.span("adopt_process") as span:
                    child = self._adopt(pid_file, command)
                    span.set(pid=child.pid)
                placement.settle(child.pid)
            if receiver:
                await receiver
        except BaseException:
            if receiver:
                receiver.cancel()
                await asyncio.gather(receiver, return_exceptions=True)
            stdio.close()
            raise
        process = Process(name, stdio)
        with _trace.span("connect_stdio"):
            process.started(child, lambda ended, said: self._judge(ended, said, log, before))
        pid_file.unlink(missing_ok=True)
        return process

    def _adopt(self, pid_file: Path, command: str) -> Child:
        try:
            return self._tools.reaper.adopt(int(pid_file.read_text()))
        except (OSError, ValueError) as error:
            raise CrunError(command, f"left no process: {error}") from error

    def _judge(self, child: Child, said: bytes, log: Path, before: int) -> Exit:
        status = child.status
        if not child.became:
            # execve(2) failed after crun had reported success, so what is said is crun's; say what a shell would.
            status = exec_failure(last_message(log)) or exec_failure(said.decode("utf-8", "replace")) or status
        log.unlink(missing_ok=True)
        oom = status == 128 + SIGKILL and self.cgroup.oom_kills() > before
        return Exit(status, child.ended_ns, oom)

    async def start(self) -> None:
        async with self._changing:
            self._expect(State.CREATED)
            if self._has_hooks:
                await self._crun("start")
            else:
                await self._tools.crun.start(self.id, self._log)
            self.state = State.RUNNING

    async def exec(self, exec_id: str, spec: Spec, ports: Ports) -> None:
        """Run another process in it."""
        self._expect(State.RUNNING)
        former = self._execs.get(exec_id)
        if former is not None and former.exit is None:
            raise AlreadyExistsError(f"container {self.id} already has a process {exec_id}")
        if sum(1 for process in self._execs.values() if process.exit is None) >= MAX_EXECS:
            raise ResourceError(f"container {self.id} has {MAX_EXECS} processes by exec already")
        if former is not None:
            del self._execs[exec_id]
            await former.close(0)
        await self._forget_ended()
        placement = take_placement(spec, Guest.look().cpus).on(self._placement)
        file = self._bundle / f"process.{self._launched + 1}"
        try:
            file.write_text(json.dumps(spec))
            process = await self._launch(
                exec_id,
                "exec",
                ["--detach", f"--process={file}"],
                ports,
                terminal=bool(spec.get("terminal")),
                placement=placement,
            )
        except CrunError:
            # crun's words for a container that ended meanwhile say nothing to a person.
            self._expect(State.RUNNING)
            raise
        finally:
            file.unlink(missing_ok=True)
        self._execs[exec_id] = process

    async def _forget_ended(self) -> None:
        ended = [name for name, process in self._execs.items() if process.exit is not None]
        for name in ended[: max(0, len(ended) - MAX_ENDED)]:
            await self._execs.pop(name).close(0)

    def process(self, exec_id: str) -> Process:
        """The process of that exec id; the init for an empty one."""
        if not exec_id:
            return self.init
        try:
            return self._execs[exec_id]
        except KeyError:
            raise NotFoundError(f"container {self.id} has no process {exec_id}") from None

    def signal_all(self, number: int, *, ending: bool = False) -> None:
        """A signal to every process in it; for its first one see `Process.signal`."""
        if number == SIGKILL and self.cgroup.kill():
            return
        pids = self.cgroup.pids()
        if not pids or not 0 < number < NSIG:
            self.init.signal(number, ending=ending)
            return
        for pid in pids:
            if pid == self.init.pid:
                self.init.signal(number, ending=ending)
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def pause(self) -> None:
        async with self._changing:
            self._expect(State.RUNNING)
            await self._crun("pause")
            self.state = State.PAUSED

    async def resume(self) -> None:
        async with self._changing:
            self._expect(State.PAUSED)
            await self._crun("resume")
            self.state = State.RUNNING

    async def update(self, resources: Spec) -> None:
        """Apply LinuxResources of the OCI specification."""
        async with self._changing:
            self._expect(State.CREATED, State.RUNNING, State.PAUSED)
            fit_resources(resources, Guest.look())
            self._check_memory(resources)
            file = self._bundle / "resources.json"
            file.write_text(json.dumps(resources))
            try:
                await self._crun("update", f"--resources={file}")
            finally:
                file.unlink(missing_ok=True)

    def _check_memory(self, resources: Spec) -> None:
        """OCI's memory.checkBeforeUpdate, which crun 1.8 does not know."""
        memory = resources.get("memory")
        if not isinstance(memory, dict) or not memory.pop("checkBeforeUpdate", False):
            return
        used, limit = self.cgroup.memory(), memory.get("limit")
        if isinstance(limit, int) and 0 <= limit < used:
            raise PreconditionError(f"container {self.id} uses {used} bytes of memory, more than the new limit {limit}")

    def termination_message(self) -> str:
        """What it wrote for whoever asks why it ended, to the file that it mounts for that: the last 4 KiB.

        Raises NotFoundError.
        """
        mounts = parse_json((self._bundle / "config.json").read_text()).get("mounts") or ()
        sources = [mount["source"] for mount in mounts if mount.get("destination", "").endswith("/termination-log")]
        if not sources:
            raise NotFoundError(f"container {self.id} mounts no termination-log")
        try:
            file = os.open(sources[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(
                f"the termination-log of container {self.id} can't be read: {error.strerror}"
            ) from error
        try:
            # It may have made it anything; of a fifo there is nothing to read.
            size = os.fstat(file).st_size
            return os.pread(file, MAX_TERMINATION, max(0, size - MAX_TERMINATION)).decode("utf-8", "replace")
        except OSError:
            return ""
        finally:
            os.close(file)

    async def remove(self, timeout: float) -> None:
        """End all of it and free what it holds; `timeout` seconds for its processes to end, 0 for as long as it takes.

        Raises TimedOutError, after which it can be called again.
        """
        async with self._changing:
            self.state = State.REMOVING
            try:
                async with asyncio.timeout(timeout or None):
                    await self.ended()
            except TimeoutError:
                raise TimedOutError(
                    f"processes of container {self.id} did not end within {timeout:g} s of SIGKILL: "
                    "they wait in the kernel, most likely for a file system"
                ) from None
            await self._scrap()

    async def ended(self) -> None:
        """Kill all of it and return when nothing runs any more."""
        with _trace.span("kill", container_id=self.id):
            self.kill()
            if self._init:
                await self._init.wait()
            with _trace.span("await_empty_cgroup"):
                await self.cgroup.emptied()
            for process in list(self._execs.values()):
                await process.wait()

    def kill(self) -> None:
        """SIGKILL to all of it; returns at once."""
        if not self.cgroup.kill() and self._init:
            with suppress(PreconditionError):
                self._init.signal(SIGKILL)
            for process in self._execs.values():
                with suppress(PreconditionError):
                    process.signal(SIGKILL)

    async def flush(self, within: float) -> None:
        """Let output leave, then close all stdio. Nothing may run any more."""
        processes = [*self._execs.values(), *([self._init] if self._init else [])]
        await asyncio.gather(*(process.close(within) for process in processes))

    async def _scrap(self) -> None:
        with _trace.span("flush_stdio"):
            await self.flush(FLUSH_WITHIN)
        self.cgroup.close()
        with suppress(AgentError):
            await self._tools.crun.run("delete", "--force", container=self.id, log=self._log)
        with _trace.span("remove_cgroup"), suppress(OSError):
            self.cgroup.remove()
        self._tools.sockets.shut(self.id)
        with _trace.span("unmount"):
            await self.mounts.clear()
        with _trace.span("remove_bundle") as span:
            from kata_common.removal import remove_tree

            if left := remove_tree(self._bundle):
                span.set(left=str(left))

    async def _crun(self, command: str, *arguments: str) -> None:
        await self._tools.crun.run(command, *arguments, container=self.id, log=self._log)

    def _expect(self, *states: State) -> None:
        if self._init is not None and self._init.exit is not None and self.state in {State.RUNNING, State.PAUSED}:
            self.state = State.STOPPED
        if self.state not in states:
            raise PreconditionError(f"container {self.id} is {self.state}; this needs it {' or '.join(states)}")
