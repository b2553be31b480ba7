"""Puts one VM together: virtiofsd, vsock and QEMU, each an async context, and the way to the agent."""

import logging
import os
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kata_common import places
from kata_runtime.config.model import Config, QemuConfig
from kata_runtime.errors import ImageError
from kata_runtime.guest.transport import HybridTransport, KernelTransport, Transport
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.hypervisor.qemu import accelerator
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.spec import VhostUserFs, VmSpec, Vsock
from kata_runtime.hypervisor.qemu.tsc import TscMeter, tsc_reader
from kata_runtime.hypervisor.qemu.vm import Vm, launch_qemu
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.hypervisor.vsock import kernel as vhost_vsock
from kata_runtime.hypervisor.vsock.backend import GUEST_CID, start_vsock_backend
from kata_runtime.image import Artifacts
from kata_runtime.mount import shared_mount_point
from kata_runtime.process import Child, Privileges, find_program
from kata_runtime.sandbox.network.network import Network
from kata_runtime.sandbox.state import SandboxDirectory
from kata_telemetry.span import Site

__all__ = ["SHARED_TAG", "Machine", "Sizes", "start_vm"]

_trace = Site(package="virtcontainers", subsystem="sandbox")
_log = logging.getLogger("kata.sandbox")

# Kata's tag of the virtio-fs device.
SHARED_TAG = "kataShared"
_QEMU_UID_BASE = 0x7000_0000
_QEMU_UID_COUNT = 0x0800_0000


@dataclass(frozen=True)
class Sizes:
    """What of the VM can be asked for per sandbox; None takes the configuration's. `memory` in MiB."""

    vcpus: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Machine:
    """A VM whose guest boots, how to reach its agent, and the processes that it can't go on without.

    `cid` is its vsock context id on this host; 0 where the kernel does no vsock for it.
    """

    vm: Vm
    transport: Transport
    accelerator: Accelerator
    helpers: tuple[Child, ...]
    vhost_net: bool = False
    cid: int = 0


def qemu_privileges(sandbox_id: str, kvm: bool) -> Privileges:
    """A user of its own per sandbox, without a name and without rights, so that one QEMU can't touch another's.

    The range is one that neither systemd nor subordinate ids use (systemd's UIDS-GIDS.md).
    """
    uid = _QEMU_UID_BASE + zlib.crc32(sandbox_id.encode()) % _QEMU_UID_COUNT
    groups = (os.stat("/dev/kvm").st_gid,) if kvm else ()  # noqa: PTH116 - one attribute of a device
    return Privileges(uid, uid, groups)


def find_artifacts(config: Config, image_dir: Path) -> Artifacts:
    """Kernel, initrd and image by the configuration, else as `kata-runtime image build` made them.

    Raises:
        ImageError: one is missing.
    """
    built = Artifacts.at(image_dir)
    found: dict[str, Path] = {}
    for key in ("kernel", "initrd", "image"):
        configured = getattr(config.qemu, key)
        path = Path(configured) if configured else getattr(built, key)
        if not path.is_file():
            hint = f"correct [hypervisor.qemu] {key}" if configured else "build it: kata-runtime image build"
            raise ImageError(f"the guest's {key} is missing: {path}", hint=hint)
        found[key] = path
    return replace(built, **found)


@asynccontextmanager
async def start_vm(
    config: Config,
    sizes: Sizes,
    directory: SandboxDirectory,
    artifacts: Artifacts,
    logs_dir: Path,
    network: Network | None = None,
    on_console: Callable[[str], None] | None = None,
) -> AsyncIterator[Machine]:
    """Run a VM for the block, with the devices of `network`; its guest is booting when this yields.

    `on_console` gets each line of its console.

    Raises:
        HostError: a program or device is missing.
        HypervisorError: QEMU did not start.
    """
    qemu = config.qemu
    accel = _choose_accelerator(qemu)
    # What it measures by is the time that the helpers take to start.
    tsc = TscMeter(tsc_reader() if accel is Accelerator.TCG else None)
    privileges = qemu_privileges(directory.sandbox_id, accel is Accelerator.KVM) if qemu.rootless else None
    async with AsyncExitStack() as stack:
        stack.enter_context(_shared(directory.shared))
        # QEMU's ends of the helpers' sockets. They must not stay open here, or nobody would see that QEMU has ended.
        theirs = stack.enter_context(ExitStack())
        helpers = _Helpers(stack, theirs, logs_dir)
        vsock, transport = await _vsock(helpers, directory, privileges)
        shared = await _virtiofs(helpers, qemu, directory)
        vhost = accel is Accelerator.KVM and not qemu.disable_vhost_net
        devices = network.devices(theirs, vhost=vhost) if network else ()
        spec = replace(
            _machine_spec(qemu, sizes, artifacts, accel),
            name=directory.sandbox_id,
            vsock=vsock,
            shared=shared,
            network=devices,
            hotplug=network is not None,
            tsc_khz=tsc.khz(),
        )
        fds = [vsock.vhost_fd, vsock.chardev_fd, shared.chardev_fd]
        fds += [fd for device in devices for fd in (device.tap_fd, device.vhost_fd)]
        launched = launch_qemu(
            spec,
            privileges=privileges,
            logs_dir=logs_dir,
            pass_fds=tuple(fd for fd in fds if fd >= 0),
            namespace=network.namespace if network else "",
            on_console=on_console,
        )
        vm = await stack.enter_async_context(launched)
        vm.helpers_served_at(max(start.ready_ns for start in helpers.starts))
        theirs.close()
        cid = vsock.cid if vsock.vhost_fd >= 0 else 0
        yield Machine(vm, transport, accel, tuple(helpers.children), vhost, cid)


def _choose_accelerator(qemu: QemuConfig) -> Accelerator:
    """What QEMU runs the guest by; a warning goes to the log."""
    with _trace.span("chooseAccelerator") as span:
        accel, warning = accelerator.choose(qemu.accelerator, accelerator.kvm_usability(rootless=qemu.rootless))
        span.set(accelerator=accel)
        if warning:
            span.set(reason=warning)
    if warning:
        _log.warning(warning)
    return accel


def _machine_spec(qemu: QemuConfig, sizes: Sizes, artifacts: Artifacts, accel: Accelerator) -> VmSpec:
    """The machine as it is configured, without a sandbox's devices."""
    return VmSpec(
        name="",
        program=find_program(qemu.path or "qemu-system-x86_64", package="qemu-system-x86"),
        accelerator=accel,
        kernel=artifacts.kernel,
        initrd=artifacts.initrd,
        image=artifacts.image,
        kernel_params=qemu.kernel_params,
        memory=sizes.memory or qemu.default_memory,
        vcpus=sizes.vcpus or qemu.vcpus(os.cpu_count() or 1),
        seccomp=qemu.seccompsandbox,
        machine_type=qemu.machine_type,
        cpu_features=qemu.cpu_features,
    )


@contextmanager
def _shared(directory: Path) -> Iterator[None]:
    """`directory` as a mount of its own, see `shared_mount_point`; both of its ends are in the trace."""
    with ExitStack() as mounted:
        with _trace.detail("shareDirectory"):
            mounted.enter_context(shared_mount_point(directory))
        try:
            yield
        finally:
            with _trace.detail("unshareDirectory"):
                mounted.close()


@dataclass
class _Helpers:
    """The processes that serve a VM's devices; `stack` ends them, `theirs` closes QEMU's ends here."""

    stack: AsyncExitStack
    theirs: ExitStack
    logs_dir: Path
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
    started = start_vsock_backend(directory.run, privileges=privileges, log_path=helpers.logs_dir / "vsock.log")
    backend = await helpers.stack.enter_async_context(started)
    chardev = helpers.add(backend.child, backend.chardev, backend.start)
    return Vsock(GUEST_CID, chardev_fd=chardev), HybridTransport(backend.hybrid_path, backend.agent_path)


async def _virtiofs(helpers: _Helpers, qemu: QemuConfig, directory: SandboxDirectory) -> VhostUserFs:
    """The directory that host and guest share."""
    started = start_virtiofsd(
        qemu.virtio_fs_daemon,
        directory.shared,
        directory.run / places.VIRTIOFSD_SOCKET,
        cache=qemu.virtio_fs_cache,
        extra=qemu.virtio_fs_extra_args,
        log_path=helpers.logs_dir / "virtiofsd.log",
    )
    return VhostUserFs(helpers.add(*await helpers.stack.enter_async_context(started)), SHARED_TAG)
