"""Puts one VM together: virtiofsd, vsock and the machine, each an async context, and the way to the agent."""

import asyncio
import importlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kata_common import places
from kata_common.files import is_file
from kata_common.threads import in_thread
from kata_runtime.cage import Cage
from kata_runtime.config.model import Config
from kata_runtime.errors import HypervisorError, ImageError, quoted
from kata_runtime.guest.transport import HybridTransport, KernelTransport, Transport
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.hypervisor.machine import Hypervisor, Machine, MachineSpec, Surroundings, Terms, VhostUserFs, Vsock
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from kata_runtime.hypervisor.vsock.backend import GUEST_CID, start_vsock_backend
from kata_runtime.image import Artifacts
from kata_runtime.image.verify import verify
from kata_runtime.process import Child, Privileges, describe
from kata_runtime.sandbox.disks import SandboxDisks
from kata_runtime.sandbox.network.network import Network
from kata_runtime.sandbox.placement import Cages
from kata_runtime.sandbox.rootfs import Rootfs, share_rootfs, shared_directory
from kata_runtime.sandbox.sizing import Sizes, base_of, room_of
from kata_runtime.sandbox.state import SandboxDirectory
from kata_runtime.sandbox.volumes import Shown
from kata_telemetry.conventions import ACCELERATOR, START_PATH, START_REASON
from kata_telemetry.span import Site, Span, SpanContext

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = [
    "SHARED_TAG",
    "Served",
    "Sizes",
    "StartVm",
    "Vm",
    "VmRequest",
    "boot_vm",
    "find_artifacts",
    "found_artifacts",
    "import_client",
    "machine_spec",
    "serve_vm",
    "start_vm",
    "surroundings",
]

T = TypeVar("T")
_trace = Site(package="virtcontainers", subsystem="sandbox")

# Kata's tag of the virtio-fs device.
SHARED_TAG = "kataShared"
# The most of it that a trace says.
_REASON = 512


@dataclass(frozen=True)
class VmRequest:
    """What a VM is asked to be. `on_console` gets each line of its console, `logs_dir` the logs of its processes.

    `cages` are what they are kept to.
    """

    config: Config
    sizes: Sizes
    directory: SandboxDirectory
    artifacts: Artifacts
    logs_dir: Path
    network: Network | None = None
    on_console: Callable[[str], None] | None = None
    cages: Cages = field(default_factory=Cages)
    # The network namespace of a machine without a network of its sandbox's.
    namespace: str = ""
    # Returns when it is known that it boots what was built (`found_artifacts`).
    verified: Callable[[], Awaitable[None]] | None = None
    # What may be done while the guest has not answered yet.
    meanwhile: Callable[[], Awaitable[None]] | None = None


ConnectAgent = Callable[[], AbstractAsyncContextManager["AgentClient"]]
ShareRootfs = Callable[[str, Rootfs], AbstractContextManager[Shown]]


@dataclass(frozen=True)
class Vm:
    """A machine whose guest boots or has booted, and all that belongs to it: whoever made it ends it as a whole.

    `transport` is the way into it and `connect` makes a client of its agent. `share` shows it a container's root
    filesystem for a block, `helpers` are the processes that it can't go on without. `cid` is its vsock context id on
    this host; 0 where the kernel does no vsock for it. `accelerator` is what runs the guest's processors.
    """

    machine: Machine
    transport: Transport
    connect: ConnectAgent
    share: ShareRootfs
    helpers: tuple[Child, ...] = ()
    cid: int = 0
    accelerator: str = ""
    # What it has of block devices of the host.
    disks: SandboxDisks | None = None
    # What the machine was made with.
    sizes: Sizes = field(default_factory=Sizes)
    # Where it came from, empty where nobody says, and why it is no clone; the trace of its template's own boot; the
    # request whose template is missing or broken, and should be made when there is time.
    origin: str = ""
    reason: str = ""
    link: SpanContext | None = None
    wanting: VmRequest | None = None

    def tell(self, root: Span) -> None:
        """Say on a trace's root what it is."""
        root.set(**{ACCELERATOR: self.accelerator})
        if self.origin:
            root.set(**{START_PATH: str(self.origin)})
        if self.reason:
            root.set(**{START_REASON: self.reason[:_REASON]})
        if self.link is not None:
            root.link(self.link)


# How a sandbox comes by its VM. `start_vm` boots one.
StartVm = Callable[[VmRequest], AbstractAsyncContextManager[Vm]]


def find_artifacts(config: Config, image_dir: Path) -> Artifacts:
    """Kernel, initrd and image by the configuration, else as `kata-runtime image build` made them.

    Raises:
        ImageError: one is missing.
    """
    built = Artifacts.at(image_dir)
    found: dict[str, Path] = {}
    for key in ("kernel", "initrd", "image"):
        configured = getattr(config.hypervisor, key)
        path = Path(configured) if configured else getattr(built, key)
        if not is_file(path):
            hint = f"correct [hypervisor.qemu] {key}" if configured else "build it: kata-runtime image build"
            raise ImageError(f"the guest's {key} is missing: {path}", hint=hint)
        found[key] = path
    return replace(built, **found)


@asynccontextmanager
async def found_artifacts(
    config: Config, image_dir: Path
) -> AsyncIterator[tuple[Artifacts, Callable[[], Awaitable[None]]]]:
    """`find_artifacts`, and what waits until they are found to be what was built (ImageError); it is done meanwhile.

    Raises:
        ImageError: one is missing.
    """
    with _trace.span("findArtifacts"):
        artifacts = find_artifacts(config, image_dir)
    verifying = asyncio.ensure_future(in_thread("image", partial(verify, artifacts.booted)))

    async def verified() -> None:
        if verifying.done():
            verifying.result()
            return
        with _trace.span("verifyImage"):
            await asyncio.shield(verifying)

    try:
        yield artifacts, verified
    finally:
        verifying.cancel()
        await asyncio.gather(verifying, return_exceptions=True)


async def import_client() -> None:
    """Import what speaks to an agent, which costs 100 ms: while the guest boots they are free."""
    with _trace.span("importAgentClient"):
        for name in ("kata_runtime.guest.agent", "kata_runtime.sandbox.management", "kata_runtime.sandbox.control"):
            await asyncio.to_thread(importlib.import_module, name)


@asynccontextmanager
async def start_vm(request: VmRequest) -> AsyncIterator[Vm]:
    """Boot a VM for the block; its guest is booting when this yields.

    Raises:
        HostError: a program or device is missing.
        HypervisorError: the machine did not start.
    """
    hypervisor = hypervisor_of(request.config)
    with hypervisor.prepared(request.directory.sandbox_id) as terms:
        async with boot_vm(request, hypervisor, terms) as vm:
            yield vm


@asynccontextmanager
async def boot_vm(request: VmRequest, hypervisor: Hypervisor, terms: Terms) -> AsyncIterator[Vm]:
    """The same by a hypervisor that has been prepared."""
    network = request.network
    async with serve_vm(request, terms) as served:
        cards = network.devices(served.theirs, vhost=terms.vhost_net) if network else ()
        spec = replace(machine_spec(request), devices=(*served.devices, *cards))
        launched = hypervisor.launch(spec, surroundings(request))
        machine = await served.unless_helpers_end(served.stack.enter_async_context(launched))
        yield served.vm(machine, spec)


def surroundings(request: VmRequest) -> Surroundings:
    """Where the machine runs."""
    namespace = request.network.namespace if request.network else request.namespace
    return Surroundings(namespace, request.cages.machine, request.logs_dir, request.on_console, request.verified)


@dataclass(frozen=True)
class Served:
    """What a machine's devices need, without the machine. `stack` ends it all; `devices` are those that all VMs have.

    `theirs` holds the machine's ends of the helpers' sockets. They must not stay open here, or nobody would see that it
    ended.
    """

    stack: AsyncExitStack
    theirs: ExitStack
    devices: tuple[Vsock, VhostUserFs]
    transport: Transport
    share: ShareRootfs
    helpers: "_Helpers"
    accelerator: str
    disks: Callable[[Machine], SandboxDisks]

    async def unless_helpers_end(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of `work`, which the machine's helpers are needed for.

        Raises:
            HypervisorError: a helper ended meanwhile, or it failed and one had not begun to serve: its words are in it.
        """
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(self.helpers.failure())
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            error = working.exception() if working.done() else None
            if ending.done() and (error is not None or not working.done()):
                raise ending.result() from error
            late = self.helpers.not_serving() if isinstance(error and error.__cause__, TimeoutError) else None
            if late is not None:
                raise late from error
            return working.result()
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.wait({working, ending})

    def vm(self, machine: Machine, spec: MachineSpec) -> Vm:
        """With the machine, made by `spec`, that has been given the devices."""
        machine.boot.helpers_served_at(max(start.ready_ns for start in self.helpers.starts))
        self.theirs.close()
        vsock = self.devices[0]
        cid = vsock.cid if vsock.vhost_fd >= 0 else 0
        connect = partial(_connect, self.transport)
        return Vm(
            machine,
            self.transport,
            connect,
            self.share,
            tuple(self.helpers.children),
            cid,
            self.accelerator,
            disks=self.disks(machine),
            sizes=Sizes(spec.vcpus, spec.memory),
        )


@asynccontextmanager
async def serve_vm(request: VmRequest, terms: Terms) -> AsyncIterator[Served]:
    """Run what serves a machine's devices for the block.

    Raises:
        HostError: a program or device is missing.
    """
    directory = request.directory
    async with AsyncExitStack() as stack:
        stack.enter_context(_shared(directory))
        theirs = stack.enter_context(ExitStack())
        helpers = _Helpers(stack, theirs, request.logs_dir, request.cages.helpers)
        vsock, transport = await _vsock(helpers, directory, terms.privileges)
        shared = await _virtiofs(helpers, request.config, directory)
        driver = request.config.hypervisor.block_device_driver.removesuffix("-pci")
        disks = partial(SandboxDisks, driver=driver, sandbox_id=directory.sandbox_id)
        share = partial(share_rootfs, directory)
        yield Served(stack, theirs, (vsock, shared), transport, share, helpers, terms.accelerator, disks)


def _connect(transport: Transport) -> AbstractAsyncContextManager["AgentClient"]:
    from kata_runtime.guest.agent import AgentClient

    return AgentClient.connected(transport.grpc_address, transport.connect)


def machine_spec(request: VmRequest) -> MachineSpec:
    """The machine without its devices."""
    base, artifacts = base_of(request.config), request.artifacts
    sizes = Sizes(request.sizes.vcpus or base.vcpus, request.sizes.memory or base.memory)
    room = room_of(request.config, sizes)
    return MachineSpec(
        name=request.directory.sandbox_id,
        kernel=artifacts.kernel,
        initrd=artifacts.initrd,
        image=artifacts.image,
        memory=sizes.memory or 0,
        vcpus=sizes.vcpus or 1,
        max_vcpus=room.vcpus or 0,
        max_memory=room.memory or 0,
        hotplug=request.network is not None,
    )


@contextmanager
def _shared(directory: SandboxDirectory) -> Iterator[None]:
    """See `shared_directory`; both of its ends are in the trace."""
    with ExitStack() as mounted:
        with _trace.detail("shareDirectory"):
            mounted.enter_context(shared_directory(directory))
        try:
            yield
        finally:
            with _trace.detail("unshareDirectory"):
                mounted.close()


@dataclass
class _Helpers:
    """The processes that serve a VM's devices; `stack` ends them, `theirs` closes the machine's ends here."""

    stack: AsyncExitStack
    theirs: ExitStack
    logs_dir: Path
    cage: Cage
    children: list[Child] = field(default_factory=list)
    starts: list[HelperStart] = field(default_factory=list)

    async def failure(self) -> HypervisorError:
        """Wait until one has ended that should not: what it was, with its words.

        One that ends well after it has served follows its machine.
        """
        waiting = {asyncio.ensure_future(child.wait()): number for number, child in enumerate(self.children)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for number in map(waiting.pop, done):
                    child, start = self.children[number], self.starts[number]
                    if child.status != 0 or not start.ready_ns:
                        how = "ended" if start.ready_ns else "did not start"
                        return _failed(child, f"{how} ({describe(child.status or 0)})")
            return await asyncio.Future()
        finally:
            for task in waiting:
                task.cancel()

    def not_serving(self) -> HypervisorError | None:
        """What there is to say of one that runs and has not begun to serve."""
        late = (child for child, start in zip(self.children, self.starts, strict=True) if not start.ready_ns)
        return next((_failed(child, "has not begun to serve") for child in late if child.status is None), None)

    def add(self, child: Child, chardev: socket.socket, start: HelperStart) -> int:
        """Keep one that is running; the fd of its chardev."""
        self.theirs.enter_context(chardev)
        self.theirs.callback(start.over)
        self.children.append(child)
        self.starts.append(start)
        return chardev.fileno()


def _failed(helper: Child, how: str) -> HypervisorError:
    # The one that is told things by the configuration.
    hint = "what it was asked for is in [hypervisor.qemu]: virtio_fs_daemon, virtio_fs_extra_args"
    return HypervisorError(
        f"{helper.name} {how}" + quoted(helper.name, helper.output), hint=hint if helper.name == "virtiofsd" else ""
    )


async def _vsock(
    helpers: _Helpers, directory: SandboxDirectory, privileges: Privileges | None
) -> tuple[Vsock, Transport]:
    """The guest's vsock device, and the way in."""
    if vhost_vsock.available():
        cid, fd = vhost_vsock.reserve_cid()
        helpers.theirs.callback(os.close, fd)
        kernel = await helpers.stack.enter_async_context(
            KernelTransport.opened(cid, directory.run / places.AGENT_SOCKET)
        )
        return Vsock(cid, vhost_fd=fd), kernel
    started = start_vsock_backend(
        directory.run, privileges=privileges, cage=helpers.cage, log_path=helpers.logs_dir / "vsock.log"
    )
    backend = await helpers.stack.enter_async_context(started)
    chardev = helpers.add(backend.child, backend.chardev, backend.start)
    return Vsock(GUEST_CID, chardev_fd=chardev), HybridTransport(backend.hybrid_path, backend.agent_path)


async def _virtiofs(helpers: _Helpers, config: Config, directory: SandboxDirectory) -> VhostUserFs:
    """The directory that host and guest share."""
    hypervisor = config.hypervisor
    started = start_virtiofsd(
        hypervisor.virtio_fs_daemon,
        directory.shared,
        directory.run / places.VIRTIOFSD_SOCKET,
        cache=hypervisor.virtio_fs_cache,
        extra=hypervisor.virtio_fs_extra_args,
        cage=helpers.cage,
        log_path=helpers.logs_dir / "virtiofsd.log",
    )
    return VhostUserFs(helpers.add(*await helpers.stack.enter_async_context(started)), SHARED_TAG)
