"""Puts one VM together: virtiofsd, vsock and the machine, each an async context, and the way to the agent."""

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
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
from typing import TYPE_CHECKING

from kata_common import places
from kata_runtime.cage import Cage
from kata_runtime.config.model import Config
from kata_runtime.errors import ImageError
from kata_runtime.guest.transport import HybridTransport, KernelTransport, Transport
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.hypervisor.machine import Machine, MachineSpec, Surroundings, VhostUserFs, Vsock
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from kata_runtime.hypervisor.vsock.backend import GUEST_CID, start_vsock_backend
from kata_runtime.image import Artifacts
from kata_runtime.process import Child, Privileges
from kata_runtime.sandbox.network.network import Network
from kata_runtime.sandbox.placement import Cages
from kata_runtime.sandbox.rootfs import Rootfs, share_rootfs, shared_directory
from kata_runtime.sandbox.sizing import Sizes
from kata_runtime.sandbox.state import SandboxDirectory
from kata_runtime.sandbox.volumes import Shown
from kata_telemetry.span import Site

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["SHARED_TAG", "Sizes", "StartVm", "Vm", "VmRequest", "find_artifacts", "start_vm"]

_trace = Site(package="virtcontainers", subsystem="sandbox")

# Kata's tag of the virtio-fs device.
SHARED_TAG = "kataShared"


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
        if not path.is_file():
            hint = f"correct [hypervisor.qemu] {key}" if configured else "build it: kata-runtime image build"
            raise ImageError(f"the guest's {key} is missing: {path}", hint=hint)
        found[key] = path
    return replace(built, **found)


@asynccontextmanager
async def start_vm(request: VmRequest) -> AsyncIterator[Vm]:
    """Boot a VM for the block; its guest is booting when this yields.

    Raises:
        HostError: a program or device is missing.
        HypervisorError: the machine did not start.
    """
    directory, network = request.directory, request.network
    hypervisor = hypervisor_of(request.config)
    terms = hypervisor.prepare(directory.sandbox_id)
    async with AsyncExitStack() as stack:
        stack.enter_context(_shared(directory))
        # The machine's ends of the helpers' sockets. They must not stay open here, or nobody would see that it ended.
        theirs = stack.enter_context(ExitStack())
        helpers = _Helpers(stack, theirs, request.logs_dir, request.cages.helpers)
        vsock, transport = await _vsock(helpers, directory, terms.privileges)
        shared = await _virtiofs(helpers, request.config, directory)
        cards = network.devices(theirs, vhost=terms.vhost_net) if network else ()
        spec = replace(_machine_spec(request), devices=(vsock, shared, *cards))
        where = Surroundings(
            network.namespace if network else "", request.cages.machine, request.logs_dir, request.on_console
        )
        machine = await stack.enter_async_context(hypervisor.launch(spec, where))
        machine.boot.helpers_served_at(max(start.ready_ns for start in helpers.starts))
        theirs.close()
        cid = vsock.cid if vsock.vhost_fd >= 0 else 0
        connect, share = partial(_connect, transport), partial(share_rootfs, directory)
        yield Vm(machine, transport, connect, share, tuple(helpers.children), cid, terms.accelerator)


def _connect(transport: Transport) -> AbstractAsyncContextManager["AgentClient"]:
    from kata_runtime.guest.agent import AgentClient

    return AgentClient.connected(transport.grpc_address)


def _machine_spec(request: VmRequest) -> MachineSpec:
    """The machine without its devices."""
    config, sizes, artifacts = request.config.hypervisor, request.sizes, request.artifacts
    return MachineSpec(
        name=request.directory.sandbox_id,
        kernel=artifacts.kernel,
        initrd=artifacts.initrd,
        image=artifacts.image,
        memory=sizes.memory or config.default_memory,
        vcpus=sizes.vcpus or config.vcpus(os.cpu_count() or 1),
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

    def add(self, child: Child, chardev: socket.socket, start: HelperStart) -> int:
        """Keep one that is running; the fd of its chardev."""
        self.theirs.enter_context(chardev)
        self.theirs.callback(start.over)
        self.children.append(child)
        self.starts.append(start)
        return chardev.fileno()


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
