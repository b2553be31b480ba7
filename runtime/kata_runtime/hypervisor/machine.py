"""The seam between a sandbox and what runs its virtual machine.

Nothing here is of one hypervisor. What implements it has a folder of its own (`qemu/`) and is made by `factory`; `fake`
is one without a machine, for tests. Where templates, pools and devices that come later fit in: docs/decisions/0034.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kata_runtime.cage import Cage
from kata_runtime.hypervisor.boot import Boot
from kata_runtime.hypervisor.findings import Finding
from kata_runtime.process import Privileges, describe

__all__ = [
    "Device",
    "Disk",
    "End",
    "Hypervisor",
    "Identity",
    "Machine",
    "MachineSpec",
    "NetDevice",
    "Online",
    "Plugged",
    "Surroundings",
    "Terms",
    "VhostUserFs",
    "Vsock",
]


@dataclass(frozen=True, slots=True)
class Vsock:
    """The guest's vsock device: the kernel's (`vhost_fd`, of /dev/vhost-vsock) or our backend's (`chardev_fd`)."""

    cid: int
    vhost_fd: int = -1
    chardev_fd: int = -1

    @property
    def id(self) -> str:
        """Its name among the machine's devices."""
        return "vsock"

    @property
    def fds(self) -> tuple[int, ...]:
        """What the hypervisor inherits for it."""
        return (self.vhost_fd,) if self.vhost_fd >= 0 else (self.chardev_fd,)


@dataclass(frozen=True, slots=True)
class VhostUserFs:
    """A shared directory: the connected socket to virtiofsd and the tag that the guest mounts."""

    chardev_fd: int
    tag: str
    queue_size: int = 1024

    @property
    def id(self) -> str:
        """Its name among the machine's devices."""
        return "shared"

    @property
    def fds(self) -> tuple[int, ...]:
        """What the hypervisor inherits for it."""
        return (self.chardev_fd,)


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A network device of the guest: its MAC address, an open tap, and /dev/vhost-net or -1 for none."""

    id: str
    mac: str
    tap_fd: int
    vhost_fd: int = -1

    @property
    def fds(self) -> tuple[int, ...]:
        """What the hypervisor inherits for it."""
        return tuple(fd for fd in (self.tap_fd, self.vhost_fd) if fd >= 0)


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device of the guest, which knows it by `id` as its serial number: an open file or device of the host.

    `driver` is virtio-blk or virtio-scsi.
    """

    id: str
    fd: int
    driver: str
    readonly: bool = False

    @property
    def fds(self) -> tuple[int, ...]:
        """What the hypervisor is given for it."""
        return (self.fd,)


# File descriptors in devices are the caller's to close, once the machine has been launched or the device plugged.
# A disk comes to a machine that runs.
Device = Vsock | VhostUserFs | NetDevice | Disk


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A machine and what its guest boots; `memory` in MiB. With `hotplug` devices can come while it runs.

    `max_vcpus` and `max_memory` are how large `Machine.resize` can make it; 0 where it keeps what it has.

    With `memory_fd` its memory is that file, which is of this size and stays when the rest is saved (`Machine.save`).
    With `saved_fd` it does not boot: it is as it was when that was written (`Machine.save`), paused.
    """

    name: str
    kernel: Path
    initrd: Path
    image: Path
    memory: int
    vcpus: int
    devices: tuple[Device, ...] = ()
    max_vcpus: int = 0
    max_memory: int = 0
    hotplug: bool = False
    memory_fd: int = -1
    saved_fd: int = -1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a machine runs: in the network namespace that the path `namespace` names, if any, and kept to `cage`.

    `logs_dir` receives its logs, `on_console` each line of its console. `before` returns when its guest may run: what
    it boots from is known, the memory of one that was saved has its content. The hypervisor may start before that.
    """

    namespace: str = ""
    cage: Cage = Cage()  # noqa: RUF009 - it is frozen
    logs_dir: Path | None = None
    on_console: Callable[[str], None] | None = None
    before: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a machine will run here.

    `privileges` are those of the machine and of the helpers that need no more, None where they stay ours. With
    `vhost_net` the host's kernel may move its network's packets. `accelerator` is what will run its processors.
    """

    privileges: Privileges | None = None
    vhost_net: bool = False
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a machine ended: an exit status, the negative number of a signal, or None where nobody can tell."""

    status: int | None

    def __str__(self) -> str:
        return "it has ended" if self.status is None else describe(self.status)


@dataclass(frozen=True, slots=True)
class Identity:
    """Settings by name, and the files that are read for it: programs, kernel, images."""

    settings: Mapping[str, object]
    files: tuple[Path, ...]


# Has the guest take into use what has come: so many CPUs, and memory (True).
Online = Callable[[int, bool], Awaitable[None]]


class Plugged(Protocol):
    """A device that came to a machine that runs."""

    async def remove(self) -> None:
        """Take it away; the guest uses it no more.

        Raises:
            HypervisorError: it was refused, or the guest keeps it.
        """
        ...

    async def grow(self, size: int) -> None:
        """Of a disk: tell the guest that what stands behind it has `size` bytes.

        Raises:
            HypervisorError: it was refused.
        """
        ...


class Machine(Protocol):
    """A virtual machine that runs, or has ended. It is ended by leaving the block that `Hypervisor.launch` began."""

    @property
    def pid(self) -> int:
        """The process on this host that stands for it."""
        ...

    @property
    def boot(self) -> Boot:
        """How far its guest has come."""
        ...

    @property
    def end(self) -> End | None:
        """None while it runs."""
        ...

    @property
    def output(self) -> str:
        """The last lines that its hypervisor wrote."""
        ...

    def console(self, count: int) -> list[str]:
        """The last lines of the guest's console, printable."""
        ...

    async def wait(self) -> End:
        """Wait for its end."""
        ...

    def kill(self) -> None:
        """End it at once. Safe to repeat; `wait` tells when it is done."""
        ...

    async def plug(self, device: Device) -> Plugged:
        """Give the running guest one more device.

        Raises:
            HypervisorError: there is no place left, or it was refused; the guest is as it was.
        """
        ...

    async def resize(self, vcpus: int, memory: int, online: Online) -> tuple[int, int]:
        """Give the running guest CPUs and memory (MiB), or take some away; how much of both it has then.

        It may have more than was asked for: memory comes and goes in steps, what it was booted with stays, and a guest
        may keep what it uses. `online` is called once what is to come is there.

        Raises:
            HypervisorError: it can't have as much; or it was refused, and the guest has less.
        """
        ...

    async def save(self, fd: int) -> None:
        """Take every device away that was plugged, stop, and write all but the memory, which is a file, to `fd`.

        It can't go on afterwards.

        Raises:
            HypervisorError: the guest keeps a device, or it was refused, or failed.
        """
        ...

    async def pause(self) -> None:
        """Stop its processors; nothing of the guest runs until `resume`.

        Raises:
            HypervisorError: it was refused.
        """
        ...

    async def resume(self) -> None:
        """Let them go on.

        Raises:
            HypervisorError: it was refused.
        """
        ...


class Hypervisor(Protocol):
    """A way to run virtual machines on this host, as it is configured; made for one machine."""

    @property
    def name(self) -> str:
        """As in its configuration table's name."""
        ...

    def prepared(self, name: str) -> AbstractContextManager[Terms]:
        """Find out how the machine `name` can run here; comes before what its devices need is started.

        What is taken for it is its own for the block.

        Raises:
            HostError: it can't.
        """
        ...

    def launch(self, spec: MachineSpec, where: Surroundings) -> AbstractAsyncContextManager[Machine]:
        """Run a machine for the block; it is booting when this yields. Within `prepared`.

        Raises:
            HypervisorError: it did not start; the hypervisor's words are in it.
            HostError: a program is missing.
        """
        ...

    def identity(self, spec: MachineSpec) -> "Identity":
        """What shapes the guest that `launch` would boot: guests of equal identity can be clones of each other.

        Within `prepared`.

        Raises:
            HostError: a program is missing.
        """
        ...

    def examine(self, root: Path) -> Iterator[Finding]:
        """What of it is here and what is missing; `root` has the host's proc and dev."""
        ...
