"""The sandbox: containers, what they share, and the end of it all."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from kata_agent.container.container import Container, Tools
from kata_agent.container.firewall import Firewall
from kata_agent.container.hooks import Hooks, add_hooks
from kata_agent.container.limits import Guest, fit_resources
from kata_agent.container.modules import Module, Modules
from kata_agent.container.namespaces import SharedNamespaces
from kata_agent.container.placement import take_placement
from kata_agent.container.spec import Spec, check_id, guest_spec, network_sysctls, resources_of
from kata_agent.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    ResourceError,
    SetupError,
)
from kata_agent.guest.mounts import Mounts, Storage, open_directories
from kata_agent.process.process import Ports
from kata_agent.process.sockets import HostSocket
from kata_common.ids import MAX_HOSTNAME, is_hostname
from kata_common.threads import in_thread
from kata_telemetry.span import Site

if TYPE_CHECKING:
    from kata_agent.guest.network import Network

__all__ = ["DiskNode", "Sandbox"]

_trace = Site(package="container", subsystem="sandbox")

MAX_CONTAINERS: Final = 512
MAX_OOM_EVENTS: Final = 1024
# Seconds that the end of a sandbox waits for killed processes, and for output nobody has read.
DESTROY_WITHIN: Final = 10.0
FLUSH_WITHIN: Final = 5.0


class DiskNode(NamedTuple):
    """A node in a container for the disk with this serial number."""

    serial: str
    driver: str
    path: str
    mode: int
    owner: tuple[int, int]
    access: str

    async def add_to(self, spec: Spec) -> None:
        """Have it made. Raises InvalidError, TimedOutError."""
        from kata_agent.guest.disks import add_node, find_disk

        disk = await find_disk(self.serial)
        add_node(spec, disk, path=self.path, mode=self.mode, owner=self.owner, access=self.access)


class Sandbox:
    """One per agent. Before `create` it has no id and takes no containers."""

    def __init__(self, tools: Tools, *, resolv_conf: Path = Path("/etc/resolv.conf"), shared: bool = True) -> None:
        """`shared` False leaves every container its own IPC and UTS namespaces (without root there is no other way)."""
        self._tools = tools
        self._shared = shared
        self._resolv_conf = resolv_conf
        self._namespaces = SharedNamespaces(self._shared_directory)
        self._mounts = Mounts()
        # Of the guest's own, for each container.
        self.hooks: Hooks = {}
        self._modules = Modules(tools.reaper)
        self._containers: dict[str, Container] = {}
        self._oom: asyncio.Queue[str] = asyncio.Queue(MAX_OOM_EVENTS)
        self._destroying = asyncio.Event()
        self._network: Network | None = None
        self.id = ""

    @property
    def _shared_directory(self) -> Path:
        return self._tools.bundles / ".sandbox"

    async def create(
        self,
        sandbox_id: str,
        *,
        hostname: str,
        domainname: str = "",
        dns: Sequence[str],
        storages: Sequence[Storage],
        modules: Sequence[Module],
        share_pid: bool,
        hold_pid: bool = False,
    ) -> None:
        """Prepare what containers will share. Raises AlreadyExistsError on a second call, InvalidError, SetupError."""
        check_id(sandbox_id, "sandbox id")
        for name in (hostname, domainname):
            if not is_hostname(name):
                raise InvalidError(f"a host or domain name has {len(name.encode())} bytes; Linux takes {MAX_HOSTNAME}")
        if self.id:
            raise AlreadyExistsError(f"this guest already has sandbox {self.id}")
        self.id = sandbox_id
        try:
            for module in modules:
                await self._modules.load(module)
            if self._shared:
                await self._namespaces.setup(hostname, domainname, share_pid=share_pid)
            if share_pid and hold_pid:
                await self._namespaces.hold_pid(self._tools.reaper)
            for storage in storages:
                await self._mounts.add(storage)
            if dns:
                await self._set_dns(dns)
        except BaseException:
            self._namespaces.close()
            await asyncio.shield(self._mounts.clear())
            self.id = ""
            raise

    async def online(self, cpus: int, *, memory: bool, wait: bool) -> None:
        """Take into use what has been plugged in, or is about to be: so many CPUs, and memory."""
        from kata_agent.guest.growth import Growth

        growth = Growth()
        with _trace.span("online_resources", cpus=cpus, memory=memory) as span:
            if memory:
                await in_thread("prepare_memory", growth.prepare_memory)
                await self._modules.load(Module("virtio_mem", ()))
                span.set(blocks=await in_thread("online_memory", growth.online_memory))
            span.set(online=await growth.online_cpus(cpus, wait=wait))

    @property
    def network(self) -> "Network":
        """The guest's network, of which many guests know nothing."""
        if self._network is None:
            from kata_agent.guest.network import Network

            self._network = Network(lambda: self._modules.load(Module("virtio_net", ())))
        return self._network

    @property
    def firewall(self) -> Firewall:
        """The guest's, which its containers share."""
        return Firewall(self._tools.reaper)

    async def _set_dns(self, servers: Sequence[str]) -> None:
        """The lines are resolv.conf's own, as with Kata."""
        text = "".join(f"{line}\n" for line in servers)
        with suppress(OSError):
            # In our image it is a link to a file in /run.
            self._resolv_conf.write_text(text)
            return
        file = self._shared_directory / "resolv.conf"
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_text(text)
        except OSError as error:
            raise SetupError(f"can't write {file}: {error.strerror}") from error
        # On a read-only file system.
        await self._mounts.add(Storage("bind", str(file), "", (), str(self._resolv_conf)))

    def container(self, container_id: str) -> Container:
        """Raises NotFoundError."""
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFoundError(f"there is no container {check_id(container_id, 'container id')}") from None

    async def create_container(
        self,
        container_id: str,
        spec: Spec,
        storages: Sequence[Storage],
        ports: Ports,
        *,
        share_pid: bool,
        directories: Sequence[str] = (),
        sockets: Sequence[HostSocket] = (),
        disks: Sequence[DiskNode] = (),
    ) -> None:
        """Make it up to the point where StartContainer lets its command run.

        Its memory ("ephemeral") is the sandbox's: it stays for other containers. `directories` are opened before.
        `disks` are those that it has nodes for.
        """
        check_id(container_id, "container id")
        if not self.id or self._destroying.is_set():
            raise PreconditionError("there is no sandbox: call CreateSandbox first")
        if container_id in self._containers:
            raise AlreadyExistsError(f"container {container_id} already exists")
        if len(self._containers) >= MAX_CONTAINERS:
            raise ResourceError(f"this sandbox has {MAX_CONTAINERS} containers already")
        shared = dict(self._namespaces.paths)
        if share_pid and not self._namespaces.pid_shared:
            raise InvalidError("linux.namespaces: this sandbox has no pid namespace to share: leave its path out")
        if not share_pid:
            shared.pop("pid", None)
        container = Container(container_id, self._tools, Mounts())
        # Before the first await, so that the id is taken.
        self._containers[container_id] = container
        try:
            with _trace.span("guest_spec"):
                add_hooks(spec, self.hooks)
                guest_spec(spec, cgroup=f"{self._tools.parent}/{container_id}", shared=shared)
                guest = Guest.look()
                fit_resources(resources_of(spec), guest)
                placement = take_placement(spec["process"], guest.cpus)
            await self._modules.load_for(spec)
            await self._prepare_disks({*(s.driver for s in storages), *(disk.driver for disk in disks)})
            for disk in disks:
                await disk.add_to(spec)
            if sysctls := network_sysctls(spec):
                self.network.set_sysctls(sysctls)
            for storage in storages:
                if storage.driver == "ephemeral":
                    await self._mounts.add_once(storage)
                else:
                    await container.mounts.add(storage)
            await open_directories(directories)
            container.listen(sockets)
            await container.create(spec, ports, placement)
            if share_pid and "pid" not in shared:
                self._namespaces.adopt_pid(container.init.pid)
        except BaseException:
            await asyncio.shield(self._discard(container))
            raise
        with _trace.span("watch_memory"):
            container.cgroup.watch_memory(lambda: self._report_oom(container_id))

    async def _prepare_disks(self, drivers: set[str]) -> None:
        if "scsi" in drivers:
            from kata_agent.guest.disks import MODULES

            for module in (name for driver in sorted(drivers) for name in MODULES.get(driver, ())):
                await self._modules.load(Module(module, ()))

    async def _discard(self, container: Container) -> None:
        with suppress(PreconditionError):
            if container.init.pid:
                await container.remove(DESTROY_WITHIN)
        await container.mounts.clear()
        self._containers.pop(container.id, None)

    async def update_memory(self, storages: Sequence[Storage]) -> None:
        """Give memory that containers share other options. Raises InvalidError, SetupError."""
        for storage in storages:
            await self._mounts.change(storage)

    async def remove_container(self, container_id: str, timeout: float) -> None:
        container = self.container(container_id)
        await container.remove(timeout)
        self._containers.pop(container_id, None)

    async def forget(self) -> None:
        """Be as before `create`. Raises PreconditionError where containers are left."""
        if self._containers or self._destroying.is_set():
            raise PreconditionError(f"sandbox {self.id} has containers, or ends: it can't be forgotten")
        self._namespaces.close()
        self._namespaces = SharedNamespaces(self._shared_directory)
        await self._mounts.clear()
        self._oom = asyncio.Queue(MAX_OOM_EVENTS)
        self._network = None
        self.hooks = {}
        self.id = ""

    async def crun_version(self) -> str:
        """Empty where there is no crun."""
        return await self._tools.crun.version()

    async def next_oom(self) -> str:
        """The id of the next container in which the kernel killed something for memory.

        Raises PreconditionError when the sandbox ends instead.
        """
        waiting, ending = asyncio.create_task(self._oom.get()), asyncio.create_task(self._destroying.wait())
        try:
            await asyncio.wait({waiting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if self._destroying.is_set():
                raise PreconditionError("the sandbox is being destroyed")
            return waiting.result()
        finally:
            waiting.cancel()
            ending.cancel()

    def _report_oom(self, container_id: str) -> None:
        with suppress(asyncio.QueueFull):
            self._oom.put_nowait(container_id)

    async def destroy(self) -> None:
        """End every process. What can't be ended in time is left to the power switch."""
        self._destroying.set()
        with _trace.span("destroy_containers", containers=len(self._containers)):
            containers = list(self._containers.values())
            for container in containers:
                container.kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(DESTROY_WITHIN):
                    await asyncio.gather(*(container.ended() for container in containers), return_exceptions=True)
                    await asyncio.gather(*(container.flush(FLUSH_WITHIN) for container in containers))

    async def close(self) -> None:
        """Undo everything on a machine that goes on living (tests)."""
        for container in list(self._containers.values()):
            with suppress(Exception):
                await container.remove(DESTROY_WITHIN)
        self._containers.clear()
        await self._mounts.clear()
        self._namespaces.close()
        with suppress(OSError):
            (self._tools.cgroups / self._tools.parent.strip("/")).rmdir()
