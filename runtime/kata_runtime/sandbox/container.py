"""A container of a sandbox, from the host's point of view."""

import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import TYPE_CHECKING

from kata_runtime.errors import SandboxError
from kata_runtime.sandbox.disks import node_source
from kata_runtime.sandbox.process import Process, ProcessState
from kata_runtime.sandbox.rootfs import Rootfs, guest_mounts, protect_mounts
from kata_runtime.sandbox.sockets import HostSocket, forwarded
from kata_runtime.sandbox.state import valid_id
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.vm import Vm
from kata_runtime.sandbox.volumes import Memory
from kata_telemetry.span import NO_SPAN, Site, Span

if TYPE_CHECKING:
    from kata_protos import agent_pb2 as pb
    from kata_runtime.guest.agent import AgentClient

__all__ = ["Container", "ContainerState"]

_trace = Site(package="virtcontainers", subsystem="container")


class ContainerState(StrEnum):
    """The states of the OCI runtime specification, and one between."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Container:
    """One container. Calls are guarded by its state; every call may raise `AgentError`."""

    def __init__(
        self,
        container_id: str,
        agent: "AgentClient",
        vm: Vm,
        lifetime: Span = NO_SPAN,
    ) -> None:
        """`lifetime` parents the spans that outlast the call which began them."""
        self.id = valid_id(container_id)
        self.init = Process(self.id, "", agent, vm.transport, lifetime)
        # OCI's, of its first process, as the guest has it.
        self.process_spec: Mapping[str, object] = {}
        self.created_ns = time.time_ns()
        self._state = ContainerState.CREATING
        self._agent = agent
        self._vm = vm
        self._lifetime = lifetime
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Container {self.id} {self.state}>"

    @property
    def state(self) -> ContainerState:
        """Where it is in its life."""
        return ContainerState.STOPPED if self.init.state is ProcessState.STOPPED else self._state

    async def create(
        self, spec: Mapping[str, object], rootfs: Rootfs, stdio: Stdio, *, timeout: float, share_pid: bool = False
    ) -> None:
        """Share its root filesystem and let the agent create it; nothing of it runs yet.

        `spec` is an OCI runtime configuration whose root.path is already the guest's. With `share_pid` it lives in the
        sandbox's pid namespace. If this fails, nothing is left.
        """
        from kata_protos import agent_pb2 as pb

        self._require(ContainerState.CREATING)
        with _trace.stage("createContainer", container_id=self.id):
            try:
                shown = self._stack.enter_context(self._vm.share(self.id, rootfs))
                disks = await self._plug(rootfs)
                self._stack.push_async_callback(self.init.close)
                request = pb.CreateContainerRequest(
                    container_id=self.id,
                    oci=json.dumps(protect_mounts(spec, guest_mounts(rootfs.share or self.id), shown)).encode(),
                    sandbox_pidns=share_pid,
                    storages=[*map(_memory, shown.memory), *disks.storages],
                    devices=disks.devices,
                    directories=shown.directories,
                    sockets=[_socket(each) for each in shown.sockets],
                    stdio=pb.StdioPorts(**await self.init.connect(stdio)),
                )
                await self._stack.enter_async_context(forwarded(shown.sockets, self._vm.transport))
                await self._agent.call(self._agent.service.CreateContainer, request, timeout=timeout)
            except BaseException:
                await self._stack.aclose()
                raise
        self.init.serve()
        process = spec.get("process")
        self.process_spec = process if isinstance(process, Mapping) else {}
        self._state = ContainerState.CREATED

    async def _plug(self, rootfs: Rootfs) -> "pb.CreateContainerRequest":
        """Give the guest the disks that it needs, for as long as it lives; the part of the request about them."""
        from kata_protos import agent_pb2 as pb

        request = pb.CreateContainerRequest()
        mounts = (*((rootfs.disk,) if rootfs.disk else ()), *rootfs.volumes)
        if not mounts and not rootfs.nodes:
            return request
        assert self._vm.disks is not None
        with _trace.span("attachDisks", container_id=self.id, count=len(mounts) + len(rootfs.nodes)):
            for mount in mounts:
                disk = await self._stack.enter_async_context(self._vm.disks.attached(mount.source))
                request.storages.add(
                    driver=disk.storage_driver,
                    source=disk.serial,
                    fstype=mount.kind,
                    options=mount.options,
                    mount_point=mount.point,
                )
                if mount.volume:
                    self._stack.enter_context(self._vm.disks.holding(mount.volume, disk, mount.point))
            for node in rootfs.nodes:
                disk = await self._stack.enter_async_context(self._vm.disks.attached(node_source(node)))
                request.devices.add(
                    id=disk.serial,
                    type=disk.storage_driver,
                    container_path=node.path,
                    mode=node.mode,
                    uid=node.uid,
                    gid=node.gid,
                    access=node.access,
                )
        return request

    async def start(self) -> None:
        """Run its process."""
        from kata_protos import agent_pb2 as pb

        self._require(ContainerState.CREATED)
        with _trace.stage("startContainer", container_id=self.id):
            await self._agent.call(self._agent.service.StartContainer, pb.StartContainerRequest(container_id=self.id))
        self.init.started()
        self._state = ContainerState.RUNNING

    def process(self, exec_id: str) -> Process:
        """One more process, to be run by `Process.exec`."""
        return Process(self.id, exec_id, self._agent, self._vm.transport, self._lifetime)

    async def wait(self) -> int:
        """Wait for the end of its process and of its output; the exit code (128 + N after signal N)."""
        end = await self.init.wait()
        await self.init.drain()
        return end.status

    async def signal(self, number: int, *, everything: bool = False, ending: bool = False) -> None:
        """Send a signal to its process, or to all of its processes; see `Process.signal`."""
        await self.init.signal(number, everything=everything, ending=ending)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the new size."""
        await self.init.resize(rows, columns)

    async def pause(self) -> None:
        """Freeze all of its processes."""
        from kata_protos import agent_pb2 as pb

        self._require(ContainerState.RUNNING)
        with _trace.span("pauseContainer", container_id=self.id):
            await self._agent.call(self._agent.service.PauseContainer, pb.PauseContainerRequest(container_id=self.id))
        self._state = ContainerState.PAUSED

    async def resume(self) -> None:
        """Let them go on."""
        from kata_protos import agent_pb2 as pb
        from kata_runtime.sandbox.guest_calls import renew

        self._require(ContainerState.PAUSED)
        with _trace.span("resumeContainer", container_id=self.id):
            request = pb.ResumeContainerRequest(container_id=self.id)
            # First: nobody knows how long the host has held the machine meanwhile.
            await renew(self._agent, self._vm.transport)
            await self._agent.call(self._agent.service.ResumeContainer, request)
        self._state = ContainerState.RUNNING

    async def update(self, resources: Mapping[str, object]) -> None:
        """Change its limits; `resources` is OCI's LinuxResources, made for the guest."""
        from kata_protos import agent_pb2 as pb

        with _trace.span("updateContainer", container_id=self.id):
            request = pb.UpdateContainerRequest(container_id=self.id, resources=json.dumps(resources).encode())
            await self._agent.call(self._agent.service.UpdateContainer, request)

    async def stats(self) -> "pb.StatsContainerResponse":
        """Its cgroup's files by name, and the guest's interfaces: all of it the guest's words, to be distrusted."""
        from kata_protos import agent_pb2 as pb

        request = pb.StatsContainerRequest(container_id=self.id)
        return await self._agent.call(self._agent.service.StatsContainer, request)

    async def pids(self) -> list[int]:
        """Its processes, as the guest numbers them."""
        from kata_protos import agent_pb2 as pb

        request = pb.ListProcessesRequest(container_id=self.id)
        answer = await self._agent.call(self._agent.service.ListProcesses, request)
        return list(answer.pids)

    async def remove(self, *, timeout: float = 10.0) -> None:
        """Kill what is left of it in the guest and unshare its root filesystem; the host's part happens in any case."""
        from kata_protos import agent_pb2 as pb

        try:
            with _trace.stage("stopContainer", container_id=self.id):
                request = pb.RemoveContainerRequest(container_id=self.id, timeout=int(timeout))
                await self._agent.call(self._agent.service.RemoveContainer, request, timeout=timeout + 5)
        finally:
            self._state = ContainerState.STOPPED
            await self._stack.aclose()

    def _require(self, state: ContainerState) -> None:
        if self.state is not state:
            raise SandboxError(f"container {self.id} is {self.state}, not {state}")


def _socket(each: HostSocket) -> "pb.HostSocket":
    from kata_protos import agent_pb2 as pb

    status = os.fstat(each.descriptor)
    mode = stat.S_IMODE(status.st_mode)
    return pb.HostSocket(number=each.number, path=each.place, mode=mode, uid=status.st_uid, gid=status.st_gid)


def _memory(memory: Memory) -> "pb.Storage":
    from kata_protos import agent_pb2 as pb

    options = [f"size={memory.size}", f"mode={memory.mode:o}", f"uid={memory.uid}", f"gid={memory.gid}"]
    return pb.Storage(
        driver="ephemeral",
        source="tmpfs",
        fstype="tmpfs",
        options=[*options, "nosuid", "nodev"],
        mount_point=memory.place,
    )
