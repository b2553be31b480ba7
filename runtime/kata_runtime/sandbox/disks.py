"""Block devices of the host in a sandbox's guest: opened here, plugged in by their descriptors, taken away at the end.

One device is plugged in once, however many of a sandbox's containers have it.
"""

import asyncio
import itertools
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_runtime.errors import HypervisorError, RootfsError, SandboxError
from kata_runtime.hypervisor.machine import Disk, Machine, Plugged
from kata_runtime.mount import Mount
from kata_runtime.oci.disks import DiskNode
from kata_runtime.sandbox import direct_volumes

__all__ = ["MOUNTABLE", "Attached", "DiskMount", "DiskSource", "SandboxDisks", "guest_disk", "node_source", "root_disk"]

_log = logging.getLogger("kata.sandbox")

# What a guest's kernel mounts of a block device.
MOUNTABLE: Final = ("ext4", "xfs")
# Kata's place for what the guest mounts by itself is /run/kata-containers.
_GUEST_DISKS: Final = "/run/kata-containers/disks"
_SYS: Final = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class DiskSource:
    """A file or block device at `path`, or the host's block device with these numbers; `what` names it in errors."""

    what: str
    path: str = ""
    numbers: tuple[int, int] | None = None
    readonly: bool = False

    def open(self) -> int:
        """A descriptor for the caller to close.

        Raises:
            RootfsError: there is none.
        """
        path = self.path
        if self.numbers is not None:
            path = _node_of(*self.numbers, self.what)
        flags = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            # Not to wait for a fifo.
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RootfsError(f"{self.what}: {path} can't be given to the guest: {error.strerror}") from error
        status = os.fstat(descriptor)
        numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
        right = stat.S_ISBLK(status.st_mode) and self.numbers in (None, numbers)
        if not right and (self.numbers is not None or not stat.S_ISREG(status.st_mode)):
            os.close(descriptor)
            raise RootfsError(f"{self.what}: {path} is no block device that can be given to the guest")
        os.set_blocking(descriptor, True)
        return descriptor


def _node_of(major: int, minor: int, what: str) -> str:
    """Where the host has a block device; the kernel's own name of it (Documentation/admin-guide/devices.rst)."""
    try:
        lines = (_SYS / f"{major}:{minor}" / "uevent").read_text().splitlines()
    except OSError as error:
        raise RootfsError(f"{what}: the host has no block device {major}:{minor}") from error
    names = [line.removeprefix("DEVNAME=") for line in lines if line.startswith("DEVNAME=")]
    return f"/dev/{names[0]}" if names else "/dev/null"


@dataclass(frozen=True, slots=True)
class DiskMount:
    """A disk whose file system the guest mounts at `point`. `volume` is the direct volume that it is, if any."""

    source: DiskSource
    kind: str
    point: str
    options: tuple[str, ...] = ()
    volume: str = ""


def node_source(node: DiskNode) -> DiskSource:
    """The host's device behind a node in a container."""
    return DiskSource(f"linux.devices: {node.path}", numbers=(node.major, node.minor), readonly=node.readonly)


def guest_disk(share: str, name: str) -> str:
    """Where the guest mounts a disk of a container."""
    return f"{_GUEST_DISKS}/{share}/{name}"


def root_disk(mounts: Sequence[Mount], point: str) -> DiskMount | None:
    """A root file system that is a block device, or the image of one, for the guest to mount at `point`."""
    if len(mounts) != 1:
        return None
    kind, source, options = mounts[0].kind, mounts[0].source, mounts[0].options
    if kind not in MOUNTABLE:
        return None
    try:
        mode = os.stat(source).st_mode  # noqa: PTH116
    except OSError:
        return None
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        return None
    disk = DiskSource("root file system", source, readonly="ro" in options)
    # A loop device is the host's way.
    return DiskMount(disk, kind, point, tuple(option for option in options if option.partition("=")[0] != "loop"))


@dataclass
class Attached:
    """A disk that the guest has, by this serial number."""

    serial: str
    driver: str
    readonly: bool
    plugged: Plugged
    users: int = 0

    @property
    def storage_driver(self) -> str:
        """As the agent calls it."""
        return "scsi" if self.driver == "virtio-scsi" else "blk"


class SandboxDisks:
    """Those of one sandbox. `driver` is virtio-blk or virtio-scsi."""

    def __init__(self, machine: Machine, driver: str, sandbox_id: str = "") -> None:
        self._sandbox_id = sandbox_id
        # By direct volume: its disk, and where in the guest each container has it.
        self._volumes: dict[str, tuple[Attached, list[str]]] = {}
        self._machine = machine
        self._driver = driver
        self._attached: dict[tuple[int, int], Attached] = {}
        self._numbers = itertools.count()
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def attached(self, source: DiskSource) -> AsyncIterator[Attached]:
        """The guest has it for the block.

        Raises:
            RootfsError: there is no such device, or the guest has it to read only.
            HypervisorError: it can't be plugged in.
        """
        async with self._changing:
            descriptor = source.open()
            try:
                key = _identity(descriptor)
                disk = self._attached.get(key)
                if disk is None:
                    disk = self._attached[key] = await self._plug(source, descriptor)
            finally:
                os.close(descriptor)
            if disk.readonly and not source.readonly:
                raise RootfsError(f"{source.what}: another container of the sandbox has it read-only")
            disk.users += 1
        try:
            yield disk
        finally:
            async with self._changing:
                disk.users -= 1
                if not disk.users:
                    del self._attached[key]
                    await self._unplug(disk)

    @contextmanager
    def holding(self, volume: str, disk: Attached, point: str) -> Iterator[None]:
        """A direct volume is this disk for the block, mounted at `point` in the guest."""
        _, points = self._volumes.setdefault(volume, (disk, []))
        points.append(point)
        direct_volumes.record(volume, self._sandbox_id)
        try:
            yield
        finally:
            points.remove(point)
            if not points:
                del self._volumes[volume]

    def place_of(self, volume: str) -> str:
        """Where the guest has a direct volume.

        Raises:
            SandboxError: no container has it.
        """
        return self._held(volume)[1][0]

    async def grow(self, volume: str, size: int) -> None:
        """What stands behind a direct volume has so many bytes now.

        Raises:
            SandboxError: no container has it.
            HypervisorError: it has less.
        """
        await self._held(volume)[0].plugged.grow(size)

    def _held(self, volume: str) -> tuple[Attached, list[str]]:
        try:
            return self._volumes[volume]
        except KeyError:
            raise SandboxError(f"no container of this sandbox has the volume {volume[:200]}") from None

    async def _plug(self, source: DiskSource, descriptor: int) -> Attached:
        serial = f"kata-disk-{next(self._numbers)}"
        try:
            plugged = await self._machine.plug(Disk(serial, descriptor, self._driver, source.readonly))
        except HypervisorError as error:
            raise HypervisorError(f"{source.what} can't be given to the guest: {error}", hint=error.hint) from error
        return Attached(serial, self._driver, source.readonly, plugged)

    async def _unplug(self, disk: Attached) -> None:
        if self._machine.end is not None:
            return
        try:
            await disk.plugged.remove()
        except HypervisorError as error:
            _log.warning("%s stays with the guest: %s", disk.serial, error)


def _identity(descriptor: int) -> tuple[int, int]:
    """What tells a device, or an image file, from all others."""
    status = os.fstat(descriptor)
    return (0, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
