"""Disks that the host gives the guest, by serial number, and the size of file systems on them.

A disk of virtio-blk says its serial number in /sys/block/NAME/serial (drivers/block/virtio_blk.c), a SCSI disk in page
0x80 of its vital product data (drivers/scsi/scsi_sysfs.c). Numbers of ioctls: fs/ext4/ext4.h, xfs_fs.h.
"""

import fcntl
import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError, NotFoundError, PreconditionError, SetupError, TimedOutError
from kata_agent.guest.uevents import awaited
from kata_telemetry.span import Site

__all__ = ["MODULES", "Disk", "Usage", "add_node", "find_disk", "grow", "usage"]

_trace = Site(package="container", subsystem="device")

# What a driver of the contract's needs in the guest; that of "blk" has been loaded for the root device.
MODULES: Final = {"scsi": ("virtio_scsi", "sd_mod")}
# Seconds for a disk to come.
WITHIN: Final = 10.0
_SERIAL: Final = re.compile(r"[A-Za-z0-9-]{1,20}")
_VPD_HEADER: Final = 4
_SECTOR: Final = 512
# Where the guest has disks' file systems (the runtime's guest_disk).
PLACES: Final = Path("/run/kata-containers/disks")
_EXT4_IOC_RESIZE_FS: Final = 0x40086610
_XFS_IOC_FSGROWFSDATA: Final = 0x4010586E
# struct xfs_growfs_data: blocks, the most per cent of inodes (25 is mkfs's).
_XFS_GROW: Final = struct.Struct("=QIxxxx")


class Disk(NamedTuple):
    """Its node in /dev, and its numbers."""

    path: str
    major: int
    minor: int


class Usage(NamedTuple):
    """Of a file system: bytes, then inodes."""

    available: int
    total: int
    used: int
    inodes_available: int
    inodes: int
    inodes_used: int


async def find_disk(serial: str, sys: Path = Path("/sys")) -> Disk:
    """The disk with this serial number, which may be on its way. Raises InvalidError, TimedOutError."""
    if not _SERIAL.fullmatch(serial):
        raise InvalidError(f"{serial[:40]!r} can't be the serial number of a disk")
    with _trace.span("awaitDevice", device=serial):
        disk = await awaited(lambda: _find(serial, sys), WITHIN)
    if disk is None:
        raise TimedOutError(f"no disk {serial} has come within {WITHIN:g} s")
    return disk


def _find(serial: str, sys: Path) -> Disk | None:
    for directory in (sys / "block").iterdir():
        if _serial_of(directory) == serial.encode():
            with suppress(OSError, ValueError):  # it goes
                major, minor = map(int, (directory / "dev").read_text().split(":"))
                return Disk(f"/dev/{directory.name}", major, minor)
    return None


def _serial_of(directory: Path) -> bytes:
    with suppress(OSError):
        return (directory / "serial").read_bytes().strip()
    with suppress(OSError):
        return (directory / "device/vpd_pg80").read_bytes()[_VPD_HEADER:].strip(b" \0")
    return b""


def _open_place(path: str) -> int:
    """A mount of a disk's; raises InvalidError, NotFoundError."""
    place = Path(path)
    if not path.startswith("/") or ".." in place.parts or PLACES not in place.parents:
        raise InvalidError(f"{path[:200]!r} is no place of a volume: those are below {PLACES}")
    try:
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"there is no volume at {path[:200]}: {error.strerror}") from error


def usage(path: str) -> Usage:
    """Of the volume mounted at `path`. Raises InvalidError, NotFoundError."""
    directory = _open_place(path)
    try:
        found = os.fstatvfs(directory)
    finally:
        os.close(directory)
    unit = found.f_frsize
    return Usage(
        found.f_bavail * unit,
        found.f_blocks * unit,
        (found.f_blocks - found.f_bfree) * unit,
        found.f_favail,
        found.f_files,
        found.f_files - found.f_ffree,
    )


def grow(path: str, size: int) -> None:
    """Give the file system of the volume mounted at `path` the size of its disk, which has at least `size` bytes.

    Raises InvalidError, NotFoundError, PreconditionError, SetupError.
    """
    directory = _open_place(path)
    try:
        has = _disk_size(os.fstat(directory).st_dev)
        if has < size:
            raise PreconditionError(f"the disk of the volume at {path} has {has} bytes, less than {size}")
        blocks, kind = has // os.fstatvfs(directory).f_bsize, _kind_of(path)
        with _trace.span("resize_fs", fstype=kind, size=has):
            if kind == "ext4":
                fcntl.ioctl(directory, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
            elif kind == "xfs":
                fcntl.ioctl(directory, _XFS_IOC_FSGROWFSDATA, _XFS_GROW.pack(blocks, 25))
            else:
                raise PreconditionError(f"a file system of type {kind or 'unknown'} at {path} can't grow")
    except OSError as error:
        raise SetupError(f"the file system at {path} can't grow: {error.strerror}") from error
    finally:
        os.close(directory)


def _disk_size(device: int) -> int:
    numbers = f"{os.major(device)}:{os.minor(device)}"
    return int(Path(f"/sys/dev/block/{numbers}/size").read_text()) * _SECTOR


def _kind_of(path: str) -> str:
    """The type of the file system mounted there (proc(5), mountinfo)."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        left, _, right = line.partition(" - ")
        if left.split()[4] == path:
            return right.split()[0]
    return ""


def add_node(spec: dict[str, object], disk: Disk, *, path: str, mode: int, owner: tuple[int, int], access: str) -> None:
    """Have crun make a node for a disk at `path` in the container, and allow it to be used. Raises InvalidError."""
    if not path.startswith("/") or set(access) - set("rwm") or not access:
        raise InvalidError(f"the node {path[:100]!r} of a disk has no absolute path, or no access of rwm")
    linux = spec["linux"]
    assert isinstance(linux, dict)
    node = {"path": path, "type": "b", "major": disk.major, "minor": disk.minor, "fileMode": stat.S_IMODE(mode)}
    linux.setdefault("devices", []).append({**node, "uid": owner[0], "gid": owner[1]})
    rule = {"allow": True, "type": "b", "major": disk.major, "minor": disk.minor, "access": access}
    linux.setdefault("resources", {}).setdefault("devices", []).append(rule)
