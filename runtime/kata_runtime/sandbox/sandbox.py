"""A sandbox from nothing to nothing: start it, run containers in it, stop it.

    NEW → STARTING → READY → STOPPING → STOPPED

`stop()` may be called in any state and any number of times; afterwards nothing of the sandbox is left on the host. A
sandbox that fails to start has stopped itself.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from kata_common import places
from kata_runtime.config.model import Config
from kata_runtime.errors import AgentError, HypervisorError, SandboxError, quoted
from kata_runtime.guest.agent_log import AgentLog
from kata_runtime.hypervisor.boot import wait_ready
from kata_runtime.metrics.families import SandboxCollector
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.network.network import Network
from kata_runtime.sandbox.network.publish import published
from kata_runtime.sandbox.options import SandboxOptions, SandboxState
from kata_runtime.sandbox.placement import Cages, Placement, placed
from kata_runtime.sandbox.process import Exit, Process
from kata_runtime.sandbox.rootfs import Rootfs
from kata_runtime.sandbox.size import VmSize
from kata_runtime.sandbox.sizing import vm_sizes
from kata_runtime.sandbox.state import SandboxDirectory, valid_id
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.timekeeper import keep_time, note
from kata_runtime.sandbox.trace import SandboxTrace
from kata_runtime.sandbox.vm import Vm, VmRequest, found_artifacts, import_client
from kata_runtime.sandbox.watch import first_failure, tell_of_end
from kata_telemetry.span import Level, Site, Span, current, use

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.guest.clock import Reading
    from kata_runtime.sandbox.guest_calls import GuestCalls

__all__ = ["Sandbox", "SandboxOptions", "SandboxState"]

_trace = Site(package="virtcontainers", subsystem="sandbox")
_agent_trace = Site(package="virtcontainers", subsystem="agent")
_hypervisor_trace = Site(package="virtcontainers", subsystem="hypervisor")
_log = logging.getLogger("kata.sandbox")
_GUEST_SHM = "/run/kata-containers/sandbox/shm"  # Kata's place for it


class Sandbox:
    """One sandbox and its containers."""

    def __init__(self, sandbox_id: str, config: Config, trace: SandboxTrace, options: SandboxOptions) -> None:
        self.id = valid_id(sandbox_id)
        self.config = config
        self.options = options
        self.state = SandboxState.NEW
        self.containers: dict[str, Container] = {}
        self._trace = trace
        self._directory = SandboxDirectory(options.directories, self.id)
        self._stack = AsyncExitStack()
        self._vm: Vm | None = None
        self._agent: AgentClient | None = None
        self._network: Network | None = None
        self._size: VmSize | None = None
        self._guard: asyncio.Task[None] | None = None
        self._timekeeper: asyncio.Task[None] | None = None
        self._broken = ""

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.state}>"

    @property
    def pid(self) -> int:
        """Process id of the VM on this host; 0 where there is none."""
        return self._vm.machine.pid if self._vm else 0

    @property
    def shm(self) -> str:
        """Where the guest has the memory that its containers share; empty where they don't."""
        return _GUEST_SHM if self.options.shm_size else ""

    def share_name(self, container_id: str) -> str:
        """A name for a container's directory among what the guest sees."""
        return self._directory.share_name(container_id)

    async def start(self) -> None:
        """Boot the VM and make the agent ready for containers.

        Raises:
            KataError: with the reason; nothing is left running then.
        """
        self._require(SandboxState.NEW)
        self._set_state(SandboxState.STARTING)
        try:
            with _trace.stage("createSandboxFromConfig"):
                with _trace.stage("createSandbox"):
                    sizes = vm_sizes(self.config, self.options.sizes, self.options.asked)
                    found = found_artifacts(self.config, self.options.image_dir)
                    artifacts, verified = await self._stack.enter_async_context(found)
                    with _trace.span("makeDirectories"):
                        await self._stack.enter_async_context(self._directory.opened())
                        self._trace.point_from(self._directory.run)
                    (logs_dir := self.options.logs_dir or self._directory.run).mkdir(parents=True, exist_ok=True)
                cages = await self._placed(self.options.placement)
                if self.options.netns is not None:
                    opened = Network.opened(self.options.netns, self._directory.network)
                    self._network = await self._stack.enter_async_context(opened)
                with _trace.stage("startVM"):
                    request = VmRequest(
                        self.config,
                        sizes,
                        self._directory,
                        artifacts,
                        logs_dir,
                        self._network,
                        on_console=AgentLog(self.id, self._trace.root).line,
                        cages=cages,
                        verified=verified,
                        meanwhile=import_client,
                    )
                    with _hypervisor_trace.stage("StartVM"):
                        vm = self._vm = await self._stack.enter_async_context(self.options.obtain_vm(request))
                        vm.tell(self._trace.root)
                        await self._booted(vm)
                        boot = current()
                    with _agent_trace.stage("StartVM"):
                        await self._start_agent(vm, boot)
                    await self._size_vm(vm)
                await self._forward_ports(vm)
        except BaseException as error:
            await self._trace.failing(error)
            await self.stop()
            raise
        self._set_state(SandboxState.READY)
        from kata_runtime.sandbox.control import serve_control
        from kata_runtime.sandbox.management import serve_management

        await self._stack.enter_async_context(serve_management(self._directory.run / places.MANAGEMENT_SOCKET, self))
        control = serve_control(self._directory.run / places.CONTROL_SOCKET, self, self._trace.root)
        await self._stack.enter_async_context(control)
        assert self._agent is not None
        self._guard = asyncio.create_task(self._watch(vm, self._agent))

    async def _placed(self, placement: Placement | None) -> Cages:
        if placement is None:
            return Cages()
        only = self.config.runtime.sandbox_cgroup_only
        made = placed(placement, self.id, only=only, record=self._directory.cgroups)
        return await self._stack.enter_async_context(made)

    async def _size_vm(self, vm: Vm) -> None:
        said, asked = self.options.sizes, self.options.asked
        self._size = VmSize(self.config, said, asked, vm.sizes, vm.machine, self._trace.root)
        self._stack.push_async_callback(self._size.close)
        assert self._agent is not None
        await self._size.begin(self._agent)

    async def _forward_ports(self, vm: Vm) -> None:
        with use(self._trace.root):  # what comes later belongs to nobody's call
            await self._stack.enter_async_context(published(self.options.published, vm.transport))
            if self._network and self.options.forward_localhost and self.options.netns:
                await self._stack.enter_async_context(self._network.forward_localhost(vm.transport))

    async def _watch(self, vm: Vm, agent: "AgentClient") -> None:
        """A guest that nobody can reach hangs for ever: without a helper, or without an agent, the VM ends at once."""
        patience = self.config.agent.health_check_request_timeout_ms / 1000
        failure = await first_failure(vm.machine, vm.helpers, agent, patience=patience)
        if failure and vm.machine.end is None:
            self._broken = failure
            _log.error("the VM is ended: %s", failure.partition("\n")[0])
            vm.machine.kill()

    async def _booted(self, vm: Vm) -> None:
        # The agent's client costs 100 ms of imports; the guest needs longer to boot, so they are free now.
        imports = asyncio.create_task(import_client())
        try:
            await wait_ready(vm.machine, self.config.agent.dial_timeout)
        except BaseException as error:
            self._trace.record_boot(vm.machine.boot, None, error)
            raise
        finally:
            await imports

    async def _start_agent(self, vm: Vm, boot: Span) -> None:
        """`boot` is the span that the guest's boot belongs to."""
        from kata_runtime.guest import clock

        agent = await self._stack.enter_async_context(vm.connect())
        self._agent = agent
        watch = asyncio.create_task(tell_of_end(vm, agent), name="VM watch")
        self._stack.callback(watch.cancel)
        reading = None
        try:
            reading = await clock.measure(vm.transport, self._trace.clock)
        finally:
            with use(boot):
                self._trace.record_boot(vm.machine.boot, reading)
        self._trace.announce(vm.cid)
        from kata_runtime.sandbox.telling import tell_agent

        tracing = self._trace.for_agent(boot, reading)
        await tell_agent(agent, self.id, self.config, self.options, self.shm, tracing)
        if self._network is not None:
            await self._network.configure(agent)
        self._trace.follow(agent)
        note(self._trace.root, reading)
        if self.config.agent.enable_tracing:
            self._keep_time(vm, agent, reading)

    def _keep_time(self, vm: Vm, agent: "AgentClient", first: "Reading") -> None:
        if self._timekeeper is None:
            kept = keep_time(vm.transport, agent, self._trace.clock, self._trace.root, first)
            self._timekeeper = asyncio.create_task(kept, name="timekeeper")
            self._stack.callback(self._timekeeper.cancel)

    def settle(self) -> None:
        """The first process runs: what could wait until now may be done."""
        if self._vm is not None and self._vm.wanting and self.config.factory.template_on_demand:
            from kata_runtime.sandbox.template.background import make_in_background

            self._vm = replace(self._vm, wanting=None)
            make_in_background(self.config, self.options.image_dir)

    async def retire(self) -> Vm:
        """Be forgotten by the guest and watch it no more, so that it can be saved: its VM. Only `stop` may follow.

        Raises:
            AgentError: the guest does not forget.
        """
        from kata_protos import agent_pb2 as pb

        self._require(SandboxState.READY)
        assert self._agent is not None
        assert self._vm is not None
        await self._trace.switch(runtime=self._trace.state.runtime, agent=False)
        await self._agent.call(self._agent.service.ForgetSandbox, pb.ForgetSandboxRequest())
        for task in (self._guard, self._timekeeper):
            if task is not None:
                task.cancel()
        return self._vm

    async def update_network(self) -> None:
        """Give the guest the interfaces that have come into its network namespace since it started.

        Raises:
            KataError: it can't have them.
        """
        self._require(SandboxState.READY)
        if self._network is not None:
            assert self._agent is not None
            assert self._vm is not None
            await self._network.update(self._vm.machine, self._agent)

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, object],
        rootfs: Rootfs,
        stdio: Stdio,
        *,
        share_pid: bool = False,
    ) -> Container:
        """Create a container; it exists until it is removed or the sandbox stops.

        Raises:
            SandboxError: the id is taken, or the sandbox is not ready.
            AgentError, RootfsError: it can't be created.
        """
        self._require(SandboxState.READY)
        assert self._agent is not None
        assert self._vm is not None
        assert self._size is not None
        if container_id in self.containers:
            raise SandboxError(f"there is a container {container_id!r} already")
        container = Container(container_id, self._agent, self._vm, self._trace.root)
        self.containers[container_id] = container
        try:
            timeout = self.config.runtime.create_container_timeout
            await self._size.admit(container_id, spec)
            await container.create(spec, rootfs, stdio, timeout=timeout, share_pid=share_pid)
        except BaseException as error:
            del self.containers[container_id]
            self._size.leave(container_id)
            await self._explain(error)
            raise
        return container

    async def update_container(self, container: Container, resources: Mapping[str, object]) -> None:
        """Change a container's limits, and the VM's size with them; `resources` is OCI's, made for the guest.

        Raises:
            KataError: it can't have them; they are as they were.
        """
        self._require(SandboxState.READY)
        assert self._size is not None
        await self._size.update(container.id, resources, partial(container.update, resources))

    async def wait_container(self, container: Container) -> int:
        """Wait for a container's process; its exit code.

        Raises:
            HypervisorError: the VM died meanwhile.
        """
        try:
            return await container.wait()
        except AgentError as error:
            await self._explain(error)
            raise

    async def wait_process(self, process: Process) -> Exit:
        """Wait for the end of a process; its last output may still be on the way.

        Raises:
            HypervisorError: the VM died meanwhile.
        """
        try:
            return await process.wait()
        except AgentError as error:
            await self._explain(error)
            raise

    async def remove_container(self, container: Container) -> None:
        """End a container of a sandbox that lives on. Its id is free afterwards, whatever the guest said."""
        try:
            await container.remove()
        finally:
            self.containers.pop(container.id, None)
            if self._size is not None and self.state is SandboxState.READY:
                self._size.leave(container.id)

    async def volume_stats(self, volume: str) -> dict[str, object]:
        """What a direct volume of its containers has and uses, as CSI's NodeGetVolumeStats says it.

        Raises:
            KataError: no container has it, or the guest does not tell.
        """
        from kata_runtime.sandbox.telling import volume_usage

        self._require(SandboxState.READY)
        assert self._agent is not None
        assert self._vm is not None
        assert self._vm.disks is not None
        return await volume_usage(self._agent, self._vm.disks.place_of(volume))

    async def resize_volume(self, volume: str, size: int) -> None:
        """The device behind a direct volume has `size` bytes now: its file system gets them.

        Raises:
            KataError: it has less, or the guest does not take them.
        """
        from kata_runtime.sandbox.telling import grow_volume

        self._require(SandboxState.READY)
        assert self._agent is not None
        assert self._vm is not None
        assert self._vm.disks is not None
        place = self._vm.disks.place_of(volume)
        with _trace.span("resizeVolume", size=size):
            await self._vm.disks.grow(volume, size)
            await grow_volume(self._agent, place, size)

    async def vm_ended(self) -> None:
        """Wait until the VM has ended, for whatever reason; the sandbox must have been started."""
        assert self._vm is not None
        await self._vm.machine.wait()

    async def oom_event(self) -> str:
        """Wait until the guest's kernel kills something for memory; the container's id.

        Raises:
            AgentError: the sandbox ends.
        """
        from kata_protos import agent_pb2 as pb

        assert self._agent is not None
        answer = await self._agent.call(self._agent.service.GetOOMEvent, pb.GetOOMEventRequest(), timeout=None)
        return str(answer.container_id)

    @property
    def agent_url(self) -> str:
        """Where its agent can be reached, as Kata writes it."""
        self._require(SandboxState.READY)
        assert self._vm is not None
        return self._vm.transport.kata_address

    @property
    def guest(self) -> "GuestCalls":
        """What its guest can be asked."""
        from kata_runtime.sandbox.guest_calls import GuestCalls

        self._require(SandboxState.READY)
        assert self._agent is not None
        assert self._vm is not None
        return GuestCalls(self._agent, self._vm.transport)

    @property
    def tracing(self) -> dict[str, object]:
        """What of it is traced."""
        return self._trace.status()

    async def metrics(self, *, openmetrics: bool) -> str:
        """What its processes, its guest and its spans say, for Prometheus."""
        return await asyncio.to_thread(self._trace.metrics, SandboxCollector(self.pid), openmetrics=openmetrics)

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        """Trace it from now on, or no more; see `SandboxTrace.switch`.

        Raises:
            KataError: it can't be.
        """
        from kata_runtime.guest import clock

        self._require(SandboxState.READY)
        assert self._vm is not None
        assert self._agent is not None
        # Clocks drift: the reading of the start may be weeks old.
        fresh = agent and not self._trace.state.agent
        reading = await clock.measure(self._vm.transport, self._trace.clock) if fresh else None
        cid = self._vm.cid
        await self._trace.switch(runtime=runtime, agent=agent, level=level, reading=reading, cid=cid)
        if reading is not None and self.state is SandboxState.READY:
            self._keep_time(self._vm, self._agent, reading)

    async def stop(self) -> None:
        """End everything and remove it from the host. Never raises because of the guest; safe to repeat."""
        if self.state in (SandboxState.STOPPING, SandboxState.STOPPED):
            return
        self._set_state(SandboxState.STOPPING)
        try:
            with _trace.stage("stopSandbox"):
                await self._stop_guest()
        finally:
            with _trace.stage("Cleanup"):
                # Shielded, because this is what keeps the host clean.
                closing = asyncio.ensure_future(self._stack.aclose())
                try:
                    await asyncio.shield(closing)
                except asyncio.CancelledError:
                    await closing
                    raise
                finally:
                    self._set_state(SandboxState.STOPPED)

    async def _stop_guest(self) -> None:
        if self._guard is not None:
            self._guard.cancel()
        for container in list(self.containers.values()):
            try:
                await container.remove()
            except AgentError as error:
                _log.warning("a container could not be removed in the guest", extra={"error": str(error)})
        self.containers.clear()
        if self._agent is not None:
            await self._trace.finish_agent()
        if self._vm is not None:
            # Nothing in the guest is worth a shutdown: its root is read-only, shared files are the host's already.
            with _hypervisor_trace.stage("StopVM"):
                self._vm.machine.kill()
                await self._vm.machine.wait()

    async def _explain(self, error: BaseException) -> None:
        """Replace an agent's "unavailable" by what it really was: a dead VM."""
        if not isinstance(error, AgentError) or error.code != "UNAVAILABLE" or self._vm is None:
            return
        machine = self._vm.machine
        try:
            async with asyncio.timeout(1):
                end = await machine.wait()
        except TimeoutError:
            return
        why, newline, words = (self._broken or str(end)).partition("\n")
        said = f"{newline}{words}{quoted(machine.boot.hypervisor, machine.output)}"
        raise HypervisorError(f"the VM ended while a container was running ({why}){said}") from error

    def _set_state(self, state: SandboxState) -> None:
        _log.info("sandbox is %s", state)
        self.state = state

    def _require(self, state: SandboxState) -> None:
        if self.state is not state:
            raise SandboxError(f"sandbox {self.id} is {self.state}, not {state}")
