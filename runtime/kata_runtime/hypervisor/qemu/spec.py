"""What a VM consists of, independent of how QEMU is told."""

from dataclasses import dataclass
from pathlib import Path

from kata_runtime.hypervisor.qemu.accelerator import Accelerator

__all__ = ["HOTPLUG_PORTS", "NetDevice", "VhostUserFs", "VmSpec", "Vsock"]

# How many devices can come while a guest runs, where it has places for them at all (`VmSpec.hotplug`).
HOTPLUG_PORTS = 4


@dataclass(frozen=True)
class Vsock:
    """The guest's vsock device: the kernel's (`vhost_fd`, of /dev/vhost-vsock) or our backend's (`chardev_fd`)."""

    cid: int
    vhost_fd: int = -1
    chardev_fd: int = -1


@dataclass(frozen=True)
class VhostUserFs:
    """A shared directory: the connected socket to virtiofsd and the tag that the guest mounts."""

    chardev_fd: int
    tag: str
    queue_size: int = 1024


@dataclass(frozen=True)
class NetDevice:
    """A network device of the guest: its MAC address, an open tap, and /dev/vhost-net or -1 for none."""

    id: str
    mac: str
    tap_fd: int
    vhost_fd: int = -1


@dataclass(frozen=True)
class VmSpec:
    """One QEMU process. Sizes in MiB; fds are open and inherited by QEMU; `launch_qemu` fills in the last three.

    `tsc_khz` is the rate of the host's time stamp counter, 0 where it is not known.
    """

    name: str
    program: str
    accelerator: Accelerator
    kernel: Path
    initrd: Path
    image: Path
    kernel_params: str
    memory: int
    vcpus: int
    seccomp: str
    qmp_fd: int = -1
    console_fd: int = -1
    firmware_fd: int = -1
    vsock: Vsock | None = None
    shared: VhostUserFs | None = None
    network: tuple[NetDevice, ...] = ()
    hotplug: bool = False
    machine_type: str = "q35"
    cpu_features: str = ""
    tsc_khz: int = 0
