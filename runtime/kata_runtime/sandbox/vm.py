"""Puts one VM together: virtiofsd, vsock and QEMU, each an async context, and the way to the agent."""

import logging
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kata_runtime.config.model import Config
from kata_runtime.errors import ImageError
from kata_runtime.guest.transport import HybridTransport, KernelTransport, Transport
from kata_runtime.hypervisor import accelerator, vhost_vsock
from kata_runtime.hypervisor.accelerator import Accelerator
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.hypervisor.qemu import Vm, launch_qemu
from kata_runtime.hypervisor.spec import VhostUserFs, VmSpec, Vsock
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.hypervisor.vsock_backend import GUEST_CID, start_vsock_backend
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
    with _trace.span("chooseAccelerator") as span:
        kvm = accelerator.kvm_usability(rootless=qemu.rootless)
        accel, warning = accelerator.choose(qemu.accelerator, kvm)
        span.set(accelerator=accel)
    if warning:
        _log.warning(warning)
    program = find_program(qemu.path or "qemu-system-x86_64", package="qemu-system-x86")
    privileges = qemu_privileges(directory.sandbox_id, accel is Accelerator.KVM) if qemu.rootless else None
    async with AsyncExitStack() as stack:
        stack.enter_context(_shared(directory.shared))
        # QEMU's ends of the helpers' sockets. They must not stay open here, or nobody would see that QEMU has ended.
        theirs = stack.enter_context(ExitStack())
        helpers: list[Child] = []
        starts: list[HelperStart] = []
        vsock, vsock_fds, transport = await _vsock(stack, theirs, helpers, starts, directory, privileges, logs_dir)
        virtiofsd, fs, fs_start = await stack.enter_async_context(
            start_virtiofsd(
                qemu.virtio_fs_daemon,
                directory.shared,
                directory.run / "virtiofs.sock",
                cache=qemu.virtio_fs_cache,
                extra=qemu.virtio_fs_extra_args,
                log_path=logs_dir / "virtiofsd.log",
            )
        )
        theirs.enter_context(fs)
        theirs.callback(fs_start.over)
        helpers.append(virtiofsd)
        starts.append(fs_start)
        vhost = accel is Accelerator.KVM and not qemu.disable_vhost_net
        devices = network.devices(theirs, vhost=vhost) if network else ()
        spec = VmSpec(
            name=directory.sandbox_id,
            program=program,
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
            vsock=vsock,
            shared=VhostUserFs(fs.fileno(), SHARED_TAG),
            network=devices,
            hotplug=network is not None,
        )
        fds = [fd for device in devices for fd in (device.tap_fd, device.vhost_fd) if fd >= 0]
        launched = launch_qemu(
            spec,
            privileges=privileges,
            logs_dir=logs_dir,
            pass_fds=(*vsock_fds, fs.fileno(), *fds),
            namespace=network.namespace if network else "",
            on_console=on_console,
        )
        vm = await stack.enter_async_context(launched)
        vm.helpers_served_at(max(start.ready_ns for start in starts))
        theirs.close()
        cid = vsock.cid if vsock.vhost_fd >= 0 else 0
        yield Machine(vm, transport, accel, tuple(helpers), vhost, cid)


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


async def _vsock(
    stack: AsyncExitStack,
    theirs: ExitStack,
    helpers: list[Child],
    starts: list[HelperStart],
    directory: SandboxDirectory,
    privileges: Privileges | None,
    logs_dir: Path,
) -> tuple[Vsock, tuple[int, ...], Transport]:
    """The guest's vsock device, the fds that QEMU inherits for it, and the way in."""
    if vhost_vsock.available():
        cid, fd = vhost_vsock.reserve_cid()
        theirs.callback(os.close, fd)
        kernel = await stack.enter_async_context(KernelTransport.opened(cid, directory.run / "agent.sock"))
        return Vsock(cid, vhost_fd=fd), (fd,), kernel
    started = start_vsock_backend(directory.run, privileges=privileges, log_path=logs_dir / "vsock.log")
    backend = await stack.enter_async_context(started)
    theirs.enter_context(backend.chardev)
    theirs.callback(backend.start.over)
    starts.append(backend.start)
    helpers.append(backend.child)
    hybrid = HybridTransport(backend.hybrid_path, backend.agent_path)
    return Vsock(GUEST_CID, chardev_fd=backend.chardev.fileno()), (backend.chardev.fileno(),), hybrid
