"""The task service behind `support.host_shim`: no isolation, no guest, but containerd's semantics."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from kata_protos.containerd import events_pb2 as events
from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_protos.containerd.types_task_pb2 import CREATED, PAUSED, RUNNING, STOPPED
from kata_runtime.shim.service import Shim, TaskService
from kata_runtime.shim.ttrpc.errors import AlreadyExists, FailedPrecondition, NotFound, Unimplemented

# Waits for a line on descriptor 3 before it becomes the container's process, so that `create` has a process id to tell.
_GATE = 'read -r _ <&3; exec 3<&-; exec chroot "$@"'


class Process:
    """A container's first process, or an exec."""

    def __init__(self, request: Any, rootfs: Path, arguments: list[str]) -> None:
        self.request = request
        self.arguments = ["/bin/sh", "-c", _GATE, "sh", str(rootfs), *arguments]
        self.pid = 0
        self.status = CREATED
        self.exit_status = 0
        self.exited_at: Timestamp | None = None
        self.ended = asyncio.Event()
        self._gate = -1
        self._process: asyncio.subprocess.Process | None = None

    async def prepare(self) -> None:
        """Start it up to the gate."""
        streams = []
        for path, flags in (
            # Not waiting for a writer: `ctr` may have none any more, or none yet.
            (self.request.stdin, os.O_RDONLY | os.O_NONBLOCK),
            (self.request.stdout, os.O_RDWR),
            (self.request.stderr, os.O_RDWR),
        ):
            streams.append(os.open(path or os.devnull, flags | os.O_CLOEXEC))
        os.set_blocking(streams[0], True)
        gate, self._gate = os.pipe()

        def become() -> None:
            os.dup2(gate, 3)

        self._process = await asyncio.create_subprocess_exec(
            *self.arguments,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            start_new_session=True,
            preexec_fn=become,
            pass_fds=(3,),
        )
        self.pid = self._process.pid
        for descriptor in (*streams, gate):
            os.close(descriptor)

    def open_gate(self) -> None:
        os.write(self._gate, b"\n")
        os.close(self._gate)
        self._gate = -1
        self.status = RUNNING

    async def end(self) -> None:
        """Wait for its end."""
        assert self._process is not None
        code = await self._process.wait()
        self.status = STOPPED
        self.exit_status = code if code >= 0 else 128 - code
        self.exited_at = Timestamp()
        self.exited_at.GetCurrentTime()
        self.ended.set()

    def kill(self, number: int) -> None:
        if self.status == STOPPED:
            raise NotFound(f"process {self.pid} has ended already")
        if self._gate >= 0 and number in (signal.SIGKILL, signal.SIGTERM):
            os.close(self._gate)
            self._gate = -1
        os.killpg(self.pid, number)


class HostTasks(TaskService):
    """Any number of containers, each with its execs."""

    def __init__(self, shim: Shim) -> None:
        self.shim = shim
        self.processes: dict[tuple[str, str], Process] = {}
        self.watchers: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for process in self.processes.values():
            if process.status != STOPPED:
                process.kill(signal.SIGKILL)
        if self.watchers:
            await asyncio.wait(self.watchers)

    def _find(self, request: Any) -> Process:
        found = self.processes.get((request.id, getattr(request, "exec_id", "")))
        if found is None:
            raise NotFound(f"no process {request.id} {getattr(request, 'exec_id', '')}")
        return found

    def _publish(self, name: str, event: Message) -> None:
        self.shim.publish(f"/tasks/{name}", event)

    async def create(self, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        if (request.id, "") in self.processes:
            raise AlreadyExists(f"container {request.id} exists")
        bundle = Path(request.bundle)
        rootfs = bundle / "rootfs"
        for mount in request.rootfs:
            options = ["-o", ",".join(mount.options)] if mount.options else []
            mounting = await asyncio.create_subprocess_exec(
                "mount", "-t", mount.type, *options, mount.source, str(rootfs)
            )
            assert await mounting.wait() == 0
        spec = json.loads((bundle / "config.json").read_text())
        process = Process(request, rootfs, spec["process"]["args"])
        self.processes[request.id, ""] = process
        await process.prepare()
        self._watch(request.id, "", process)
        created = events.TaskCreate(
            container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, pid=process.pid
        )
        created.io.stdout = request.stdout
        self._publish("create", created)
        return task.CreateTaskResponse(pid=process.pid)

    def _watch(self, container_id: str, exec_id: str, process: Process) -> None:
        async def watch() -> None:
            await process.end()
            self._publish(
                "exit",
                events.TaskExit(
                    container_id=container_id,
                    id=exec_id or container_id,
                    pid=process.pid,
                    exit_status=process.exit_status,
                    exited_at=process.exited_at,
                ),
            )

        watcher = asyncio.create_task(watch())
        self.watchers.add(watcher)
        watcher.add_done_callback(self.watchers.discard)

    async def start(self, request: task.StartRequest) -> task.StartResponse:
        process = self._find(request)
        if process.status != CREATED:
            raise FailedPrecondition(f"{request.id} {request.exec_id} was started before")
        if request.exec_id:
            await process.prepare()
            self._watch(request.id, request.exec_id, process)
            started = events.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=process.pid)
            self._publish("exec-started", started)
        else:
            self._publish("start", events.TaskStart(container_id=request.id, pid=process.pid))
        process.open_gate()
        return task.StartResponse(pid=process.pid)

    async def delete(self, request: task.DeleteRequest) -> task.DeleteResponse:
        process = self._find(request)
        if process.status not in (STOPPED, CREATED):
            raise FailedPrecondition(f"{request.id} {request.exec_id} is running")
        if process.status == CREATED and process.pid:
            process.kill(signal.SIGKILL)
            await process.ended.wait()
        del self.processes[request.id, request.exec_id]
        response = task.DeleteResponse(pid=process.pid, exit_status=process.exit_status, exited_at=process.exited_at)
        if not request.exec_id:
            self._publish(
                "delete",
                events.TaskDelete(
                    container_id=request.id,
                    pid=process.pid,
                    exit_status=process.exit_status,
                    exited_at=process.exited_at,
                ),
            )
        return response

    async def state(self, request: task.StateRequest) -> task.StateResponse:
        process = self._find(request)
        return task.StateResponse(
            id=request.exec_id or request.id,
            bundle=self.shim.launch.bundle,
            pid=process.pid,
            status=process.status,
            stdin=process.request.stdin,
            stdout=process.request.stdout,
            stderr=process.request.stderr,
            terminal=process.request.terminal,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
            exec_id=request.exec_id,
        )

    async def pids(self, request: task.PidsRequest) -> task.PidsResponse:
        response = task.PidsResponse()
        for (container_id, _), process in self.processes.items():
            if container_id == request.id and process.status != STOPPED:
                response.processes.add(pid=process.pid)
        return response

    async def pause(self, request: task.PauseRequest) -> Empty:
        process = self._find(request)
        process.kill(signal.SIGSTOP)
        process.status = PAUSED
        self._publish("paused", events.TaskPaused(container_id=request.id))
        return Empty()

    async def resume(self, request: task.ResumeRequest) -> Empty:
        process = self._find(request)
        process.kill(signal.SIGCONT)
        process.status = RUNNING
        self._publish("resumed", events.TaskResumed(container_id=request.id))
        return Empty()

    async def checkpoint(self, request: task.CheckpointTaskRequest) -> Empty:
        raise Unimplemented("containers can't be checkpointed")

    async def kill(self, request: task.KillRequest) -> Empty:
        self._find(request).kill(request.signal)
        return Empty()

    async def exec(self, request: task.ExecProcessRequest) -> Empty:
        if (request.id, request.exec_id) in self.processes:
            raise AlreadyExists(f"exec {request.exec_id} exists")
        init = self._find(task.StateRequest(id=request.id))
        arguments = json.loads(request.spec.value)["args"]
        self.processes[request.id, request.exec_id] = Process(request, Path(init.arguments[4]), arguments)
        self._publish("exec-added", events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    async def resize_pty(self, request: task.ResizePtyRequest) -> Empty:
        self._find(request)
        raise Unimplemented("there are no terminals here")

    async def close_io(self, request: task.CloseIORequest) -> Empty:
        self._find(request)
        return Empty()

    async def update(self, request: task.UpdateTaskRequest) -> Empty:
        self._find(request)
        return Empty()

    async def wait(self, request: task.WaitRequest) -> task.WaitResponse:
        process = self._find(request)
        await process.ended.wait()
        return task.WaitResponse(exit_status=process.exit_status, exited_at=process.exited_at)

    async def stats(self, request: task.StatsRequest) -> task.StatsResponse:
        metrics = Metrics()
        metrics.pids.current = len((await self.pids(task.PidsRequest(id=request.id))).processes)
        response = task.StatsResponse()
        response.stats.type_url = metrics.DESCRIPTOR.full_name
        response.stats.value = metrics.SerializeToString()
        return response

    async def connect(self, request: task.ConnectRequest) -> task.ConnectResponse:
        process = self.processes.get((request.id, ""))
        return task.ConnectResponse(shim_pid=os.getpid(), task_pid=process.pid if process else 0, version="test")

    async def shutdown(self, request: task.ShutdownRequest) -> Empty:
        if not self.processes:
            self.shim.stop()
        return Empty()
