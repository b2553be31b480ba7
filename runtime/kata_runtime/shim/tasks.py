"""The task service of `containerd-shim-kata-v2`: containers in a VM, with runc's semantics."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_common.files import write_atomically
from kata_protos.containerd import events_pb2 as events
from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_protos.containerd.types_task_pb2 import CREATED, PAUSED, RUNNING, STOPPED
from kata_runtime.errors import AgentError, KataError
from kata_runtime.mount import Mount
from kata_runtime.oci.bundle import read_bundle, read_process, read_resources
from kata_runtime.oci.resources import guest_resources
from kata_runtime.oci.sandbox import SandboxSpec
from kata_runtime.oci.spec import guest_process
from kata_runtime.sandbox.hooks import AFTER_END, AFTER_START, BEFORE_START, Hooks
from kata_runtime.sandbox.process import Exit, ProcessState
from kata_runtime.sandbox.workload import check, of_bundle, tell
from kata_runtime.shim import grouping
from kata_runtime.shim.cleanup import VM_PID_FILE
from kata_runtime.shim.managed import Managed, ManagedContainer, ManagedContainers, ManagedExec
from kata_runtime.shim.members import join_all, share_memory, shares_pid
from kata_runtime.shim.metrics import to_metrics
from kata_runtime.shim.pod import Pod, options_of
from kata_runtime.shim.sandboxes import KataSandboxes, Tasks
from kata_runtime.shim.service import Shim, TaskService
from kata_runtime.shim.stdio import Names, open_stdio
from kata_runtime.shim.ttrpc.errors import (
    AlreadyExists,
    Code,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.span import Site, Span

__all__ = ["KataTasks", "open_service"]

_log = logging.getLogger("kata.shim")
_trace = Site(package="containerdshim", subsystem="task")
_R = TypeVar("_R")

# Exit status of what ended because its VM did.
_LOST = 255
# Seconds that `Delete` gives output which nobody reads.
_FLUSH = 5.0


@asynccontextmanager
async def open_service(shim: Shim) -> AsyncIterator["KataTasks"]:
    """The service of one sandbox, which ends with the block."""
    service = KataTasks(shim)
    try:
        yield service
    finally:
        await service.close()


class KataTasks(TaskService):
    """The containers of one sandbox, and their execs. Calls for different ones do not wait for each other."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._pod = Pod(shim)
        self._containers = ManagedContainers(self._pod.id)
        self._watchers: set[asyncio.Task[None]] = set()
        tasks = Tasks(self._all_metrics, self._out_of_memory, self._all_ended, shim.stop)
        self._sandboxes = self.sandbox = KataSandboxes(self._pod, tasks)

    @property
    def needed(self) -> bool:
        """See TaskService."""
        return bool(self._containers) or self._sandboxes.ready

    def enter(self, call: Call) -> Span:
        """See TaskService."""
        self._pod.open(call)
        return self._pod.root

    def close_trace(self) -> None:
        """See TaskService."""
        self._pod.close_trace()

    async def close(self) -> None:
        """End the sandbox, and say so of every process in it."""
        await self._pod.end("shim stopped")
        for container in self._containers.values():
            await self._let_go(container)
        await self._all_ended()

    async def _all_ended(self) -> None:
        """Wait until the end of every process has been told; it must be on its way."""
        if self._watchers:
            await asyncio.wait(self._watchers)

    def _publish(self, name: str, event: Message) -> None:
        self._shim.publish(f"/tasks/{name}", event)

    # Create

    async def create(self, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        """See TaskService. The first container brings the sandbox."""
        if request.checkpoint:
            raise Unimplemented("containers of a VM can't be restored from a checkpoint")
        if request.id in self._containers:
            raise AlreadyExists(f"there is a container {request.id} already")
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        owner = request.id == self._shim.launch.id and not self._sandboxes.lives
        managed = ManagedContainer(request.id, request.bundle, names, owner=owner)
        self._containers[request.id] = managed
        try:
            async with managed.lock:
                await self._create(managed, request)
        except BaseException as error:
            del self._containers[request.id]
            if managed.host is not None:
                await managed.host.close()
            if managed.owner:
                await self._pod.end("error", error)
            raise
        self._watch(managed)
        return task.CreateTaskResponse(pid=self._pod.pid)

    async def _create(self, managed: ManagedContainer, request: task.CreateTaskRequest) -> None:
        with _trace.span("readBundle"):
            bundle = read_bundle(Path(request.bundle), mounted=bool(request.rootfs))
        bundle.spec["process"]["terminal"] = request.terminal
        if self._sandboxes.lives:
            if self._sandboxes.of_cri:
                join_all(bundle.spec)
            share_memory(bundle.spec)
        # Before anything is booted for it.
        check(bundle, member=not managed.owner)
        managed.hooks = Hooks.of(bundle.spec, request.id, bundle.directory)
        pod = self._shim.launch.group.kind == grouping.SANDBOX
        if managed.owner:
            await self._pod.begin(options_of(SandboxSpec.of(bundle.spec), pod=pod), managed.hooks)
        else:
            await managed.hooks.run(BEFORE_START, "creating", self._pod.pid, strict=True)
        sandbox = self._pod.sandbox
        layers = tuple(Mount(mount.type, mount.source, tuple(mount.options)) for mount in request.rootfs)
        workload = of_bundle(
            bundle,
            sandbox.share_name(request.id),
            disable_guest_seccomp=self._pod.config.runtime.disable_guest_seccomp,
            layers=layers,
            shm=sandbox.shm,
            member=not managed.owner,
            disks=not self._pod.config.hypervisor.disable_block_device_use,
        )
        with _trace.span("openStdio"):
            managed.host = await open_stdio(managed.names, request.id, self._shim.launch.namespace)
        container = await sandbox.create_container(
            request.id,
            workload.spec,
            workload.rootfs,
            managed.host.stdio,
            # Its own container offers its pid namespace.
            share_pid=pod if managed.owner else shares_pid(bundle.spec),
        )
        managed.created(container)
        if managed.owner:
            self._pod.watch_memory(self._out_of_memory)
        write_atomically(f"{request.bundle}/{VM_PID_FILE}", b"%d" % self._pod.pid)
        created = events.TaskCreate(
            container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, pid=self._pod.pid
        )
        created.io.stdin, created.io.stdout, created.io.stderr = request.stdin, request.stdout, request.stderr
        created.io.terminal = request.terminal
        self._publish("create", created)

    def _out_of_memory(self, container_id: str) -> None:
        # The name comes from the guest.
        if container_id in self._containers:
            self._publish("oom", events.TaskOOM(container_id=container_id))

    # Ends

    def _watch(self, managed: Managed) -> None:
        watcher = self._pod.spawn(self._until_end(managed), f"end of {managed.what}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _until_end(self, managed: Managed) -> None:
        end = await self._end_of(managed)
        # Whoever starts it holds the lock until its start has been published.
        async with managed.lock:
            managed.ended(end)
            self._publish(
                "exit",
                events.TaskExit(
                    container_id=managed.container_id,
                    id=managed.exec_id or managed.container_id,
                    pid=self._pod.pid,
                    exit_status=end.status,
                    exited_at=managed.exited_at,
                ),
            )
        with _trace.span("flushStdio", container_id=managed.container_id):
            await managed.flush()
        if isinstance(managed, ManagedContainer) and managed.owner:
            await self._pod.end(f"exit {end.status}", RuntimeError(end.reason) if end.reason else None)

    async def _end_of(self, managed: Managed) -> Exit:
        assert managed.process is not None
        sandbox = self._pod.running
        try:
            return await sandbox.wait_process(managed.process)
        except KataError as error:
            # Never taken for success, and never without a reason.
            _log.error("%s is lost: %s", managed.what, error)
            end = Exit(_LOST, time.time_ns(), reason=str(error))
            managed.process.ended(end)
            return end

    # Start

    async def start(self, request: task.StartRequest) -> task.StartResponse:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        await _to_its_end(self._start(managed))
        return task.StartResponse(pid=self._pod.pid)

    async def _start(self, managed: Managed) -> None:
        async with managed.lock:
            if managed.status != CREATED:
                raise FailedPrecondition(f"{managed.what} has been started before")
            if isinstance(managed, ManagedExec):
                await self._start_exec(managed)
                return
            container = self._containers.made(managed.container_id).container
            assert container is not None
            if isinstance(managed, ManagedContainer) and managed.owner:
                # Docker and `ctr run --cni` set the network up only now, by the process id that `Create` answered.
                await self._pod.sandbox.update_network()
            await container.start()
            managed.running()
            self._publish("start", events.TaskStart(container_id=managed.container_id, pid=self._pod.pid))
            if isinstance(managed, ManagedContainer):
                await managed.hooks.run(AFTER_START, "running", self._pod.pid)
        self._pod.started()

    async def _start_exec(self, managed: ManagedExec) -> None:
        parent = self._containers.made(managed.container_id)
        if parent.status != RUNNING or parent.container is None:
            raise FailedPrecondition(f"container {parent.container_id} is not running")
        managed.host = await open_stdio(managed.names, managed.container_id, self._shim.launch.namespace)
        process = parent.container.process(managed.exec_id)
        try:
            await process.exec(managed.spec, managed.host.stdio)
        except BaseException:
            await managed.host.close()
            managed.failed()
            raise
        managed.process = process
        managed.running()
        started = events.TaskExecStarted(container_id=managed.container_id, exec_id=managed.exec_id, pid=self._pod.pid)
        self._publish("exec-started", started)
        self._watch(managed)
        if managed.size is not None:
            await process.resize(*managed.size)

    async def exec(self, request: task.ExecProcessRequest) -> Empty:
        """See TaskService."""
        container = await self._containers.asked(request.id)
        if not request.exec_id:
            raise InvalidArgument("an exec needs an id")
        if request.exec_id in container.execs:
            raise AlreadyExists(f"container {request.id} has an exec {request.exec_id} already")
        if container.status not in (CREATED, RUNNING):
            raise FailedPrecondition(f"container {request.id} is not running")
        process, notes = guest_process(read_process(request.spec.value))
        tell(notes)
        process["terminal"] = request.terminal
        names = Names(request.stdin, request.stdout, request.stderr, request.terminal)
        container.execs[request.exec_id] = ManagedExec(request.id, request.exec_id, names, process)
        self._publish("exec-added", events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    # Delete

    async def delete(self, request: task.DeleteRequest) -> task.DeleteResponse:
        """See TaskService. With the sandbox's own container the VM goes."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        await _to_its_end(self._delete(managed))
        return task.DeleteResponse(pid=self._pod.pid, exit_status=managed.exit_status, exited_at=managed.exited_at)

    async def _delete(self, managed: Managed) -> None:
        if managed.status == CREATED:
            await self._undo(managed)
        async with managed.lock:
            if managed.status != STOPPED:
                raise FailedPrecondition(f"{managed.what} is running: kill it first")
            if managed.process is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FLUSH):
                        await managed.flushed.wait()
            parent = self._containers.made(managed.container_id)
            if isinstance(managed, ManagedContainer):
                await self._free(managed)
                del self._containers[managed.container_id]
            else:
                del parent.execs[managed.exec_id]
                return
            self._publish(
                "delete",
                events.TaskDelete(
                    container_id=managed.container_id,
                    pid=self._pod.pid,
                    exit_status=managed.exit_status,
                    exited_at=managed.exited_at,
                ),
            )

    async def _undo(self, managed: Managed) -> None:
        """End what was made and never started."""
        if managed.process is None:
            managed.never_ran()
            return
        with suppress(KataError):
            await managed.process.signal(signal.SIGKILL)
        await managed.known.wait()

    async def _free(self, managed: ManagedContainer) -> None:
        if managed.owner:
            await self._pod.end(f"exit {managed.exit_status}")
        else:
            if managed.container is not None and not self._pod.over:
                await self._pod.running.remove_container(managed.container)
            await managed.hooks.run(AFTER_END, "stopped", self._pod.pid)
        await self._let_go(managed)

    async def _let_go(self, managed: ManagedContainer) -> None:
        """Close the stdio of all its processes, read or not."""
        for process in (managed, *managed.execs.values()):
            if process.process is not None:
                await process.process.close()
            if process.host is not None:
                await process.host.close()

    # What does not change a life

    async def state(self, request: task.StateRequest) -> task.StateResponse:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        return task.StateResponse(
            id=request.exec_id or request.id,
            bundle=self._containers.made(request.id).bundle,
            pid=self._pod.pid,
            status=managed.status,
            stdin=managed.names.stdin,
            stdout=managed.names.stdout,
            stderr=managed.names.stderr,
            terminal=managed.names.terminal,
            exit_status=managed.exit_status,
            exited_at=managed.exited_at,
            exec_id=request.exec_id,
        )

    async def wait(self, request: task.WaitRequest) -> task.WaitResponse:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        await managed.known.wait()
        return task.WaitResponse(exit_status=managed.exit_status, exited_at=managed.exited_at)

    async def pids(self, request: task.PidsRequest) -> task.PidsResponse:
        """See TaskService. The numbers are the guest's."""
        managed = await self._containers.asked(request.id)
        response = task.PidsResponse()
        if managed.container is not None and managed.status != STOPPED:
            for pid in await managed.container.pids():
                response.processes.add(pid=pid)
        return response

    async def kill(self, request: task.KillRequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        if managed.status == STOPPED:
            raise NotFound(f"{managed.what} has ended already")
        if managed.process is None:
            raise FailedPrecondition(f"{managed.what} has not been started")
        try:
            await managed.process.signal(request.signal, everything=request.all)
        except KataError as error:
            refused = isinstance(error, AgentError) and error.code == Code.FAILED_PRECONDITION.name
            if refused or managed.process.state is ProcessState.STOPPED:
                raise NotFound(f"{managed.what} has ended already") from error
            raise
        return Empty()

    async def pause(self, request: task.PauseRequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked(request.id)
        async with managed.lock:
            if managed.status != RUNNING or managed.container is None:
                raise FailedPrecondition(f"container {request.id} is not running")
            await managed.container.pause()
            managed.status = PAUSED
            self._publish("paused", events.TaskPaused(container_id=request.id))
        return Empty()

    async def resume(self, request: task.ResumeRequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked(request.id)
        async with managed.lock:
            if managed.status != PAUSED or managed.container is None:
                raise FailedPrecondition(f"container {request.id} is not paused")
            await managed.container.resume()
            managed.status = RUNNING
            self._publish("resumed", events.TaskResumed(container_id=request.id))
        return Empty()

    async def checkpoint(self, request: task.CheckpointTaskRequest) -> Empty:
        """See TaskService."""
        raise Unimplemented("containers of a VM can't be checkpointed")

    async def resize_pty(self, request: task.ResizePtyRequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        if managed.process is not None:
            await managed.process.resize(request.height, request.width)
        elif isinstance(managed, ManagedExec):
            managed.size = (request.height, request.width)
        return Empty()

    async def close_io(self, request: task.CloseIORequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked_process(request.id, request.exec_id)
        if request.stdin and managed.host is not None:
            managed.host.end_input()
        return Empty()

    async def update(self, request: task.UpdateTaskRequest) -> Empty:
        """See TaskService."""
        managed = await self._containers.asked(request.id)
        if managed.container is None or managed.status == STOPPED:
            raise FailedPrecondition(f"container {request.id} is not running")
        resources = guest_resources(read_resources(request.resources.value))
        tell(resources.notes)
        if resources.value:
            await self._pod.sandbox.update_container(managed.container, resources.value)
        return Empty()

    async def stats(self, request: task.StatsRequest) -> task.StatsResponse:
        """See TaskService. Also after its end: containerd 2 looks there whether memory ran out."""
        managed = await self._containers.asked(request.id)
        if managed.container is None or self._pod.over:
            raise FailedPrecondition(f"container {request.id} is not running")
        stats = await managed.container.stats()
        metrics = to_metrics(stats.files, stats.network_stats)
        response = task.StatsResponse()
        response.stats.type_url = metrics.DESCRIPTOR.full_name
        response.stats.value = metrics.SerializeToString()
        return response

    async def _all_metrics(self) -> list[Metrics]:
        """Of the containers that run; the interfaces, which are the pod's, with the first of them."""
        live = [managed.container for managed in self._containers.values() if managed.status in (RUNNING, PAUSED)]
        found: list[Metrics] = []
        for container in live:
            if container is not None:
                stats = await container.stats()
                found.append(to_metrics(stats.files, () if found else stats.network_stats))
        return found

    async def connect(self, request: task.ConnectRequest) -> task.ConnectResponse:
        """See TaskService."""
        known = request.id in self._containers
        return task.ConnectResponse(shim_pid=os.getpid(), task_pid=self._pod.pid if known else 0, version="2")

    async def shutdown(self, request: task.ShutdownRequest) -> Empty:
        """See TaskService."""
        if request.now or not (self._containers or self._sandboxes.lives):
            self._shim.stop()
        return Empty()


async def _to_its_end(work: Coroutine[object, object, _R]) -> _R:
    """Do something that may not stop halfway: it goes on when containerd, or its patience, is gone."""
    return await asyncio.shield(asyncio.create_task(work))
