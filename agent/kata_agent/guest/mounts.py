"""Mounts that the host asks for (`Storage`), and taking them away again.

Drivers by Kata's names: "virtio-fs" (a share of the host's, `source` is its tag), "ephemeral" (tmpfs), "local" (a
directory), "bind", and "blk" and "scsi" (a disk, `source` is its serial number).
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError, ResourceError, SetupError
from kata_common import linux
from kata_common.linux import MountFlag
from kata_common.threads import in_thread
from kata_telemetry.span import Site

__all__ = ["DRIVERS", "Mounts", "Storage", "open_directories"]

_trace = Site(package="container", subsystem="mount")

DRIVERS: Final = ("virtio-fs", "ephemeral", "bind", "local", "blk", "scsi")
MAX_MOUNTS: Final = 256


class Storage(NamedTuple):
    """The contract's Storage, without protobuf."""

    driver: str
    source: str
    fstype: str
    options: Sequence[str]
    mount_point: str


class Mounts:
    """The mounts of one owner (the sandbox, a container), undone in reverse."""

    def __init__(self) -> None:
        self._points: list[str] = []
        self._adding = asyncio.Lock()

    async def add(self, storage: Storage) -> None:
        """Do one mount. Raises InvalidError, SetupError, ResourceError. A mount that hangs blocks only this call."""
        point = _checked(storage.mount_point, "mount point")
        if len(self._points) >= MAX_MOUNTS:
            raise ResourceError(f"more than {MAX_MOUNTS} mounts for one owner")
        with _trace.span("mount", driver=storage.driver, fstype=storage.fstype):
            if storage.driver in ("blk", "scsi"):
                from kata_agent.guest.disks import find_disk

                storage = storage._replace(source=(await find_disk(storage.source)).path)
            try:
                mounted = await in_thread("mount", partial(_mount, storage, point))
            except OSError as error:
                raise SetupError(
                    f"can't mount {storage.source or storage.fstype!r} ({storage.driver}) at "
                    f"{error.filename or point}: {error.strerror}"
                ) from error
        if mounted:
            self._points.append(point)

    async def add_once(self, storage: Storage) -> None:
        """Do one mount, unless this owner has one there already; raises as `add`."""
        async with self._adding:
            if storage.mount_point not in self._points:
                await self.add(storage)

    async def change(self, storage: Storage) -> None:
        """Give memory of this owner's other options: flags, and data as size=. Raises InvalidError, SetupError."""
        if storage.driver != "ephemeral" or storage.mount_point not in self._points:
            raise InvalidError(
                f"there is no memory of the sandbox's at {storage.mount_point[:80]!r} (driver ephemeral)"
            )
        flags, propagation, rest = linux.mount_flags(storage.options)
        if propagation:
            raise InvalidError(f"propagation of {storage.mount_point[:80]!r} can't be changed")
        remount = partial(linux.mount, "", storage.mount_point, "", flags | MountFlag.REMOUNT, ",".join(rest))
        with _trace.span("remount", driver=storage.driver):
            try:
                await in_thread("mount", remount)
            except OSError as error:
                raise SetupError(f"can't change the mount at {storage.mount_point}: {error.strerror}") from error

    async def clear(self) -> None:
        """Take them all away, the last first. Busy ones go when their last user does."""
        while self._points:
            with suppress(OSError):
                await in_thread("umount", partial(linux.umount, self._points.pop()))


async def open_directories(paths: Sequence[str]) -> None:
    """Open directories, so that what virtio-fs announces to be mounted there is mounted in this mount namespace.

    Containers copy it. One that is not there is passed over: whoever mounts it says so. No symlink is followed, for a
    container may have written what is below its volumes.
    """
    if not paths:
        return
    with _trace.span("open_directories", count=len(paths)):
        await in_thread("open", partial(_open_all, paths))


def _open_all(paths: Sequence[str]) -> None:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            with suppress(OSError):
                os.close(linux.open_beneath(root, path.lstrip("/"), os.O_PATH | os.O_DIRECTORY))
    finally:
        os.close(root)


def _checked(path: str, what: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path or len(path) > 1024:
        raise InvalidError(f"{what} {path[:80]!r} is not an absolute path without '..'")
    return path


def _mount(storage: Storage, point: str) -> bool:
    """Do it; False where nothing was mounted (a plain directory)."""
    flags, propagation, rest = linux.mount_flags(storage.options)
    data = ",".join(rest)
    match storage.driver:
        case "blk" | "scsi":
            _make_directory(point)
            linux.mount(storage.source, point, storage.fstype, flags, data)
        case "virtio-fs":
            _make_directory(point)
            linux.mount(storage.source, point, storage.fstype or "virtiofs", flags, data)
        case "ephemeral":
            _make_directory(point)
            linux.mount(storage.source or "tmpfs", point, storage.fstype or "tmpfs", flags, data)
        case "bind":
            source = _checked(storage.source, "source of a bind mount")
            _make_target(source, point)
            linux.mount(source, point, "", (flags & MountFlag.REC) | MountFlag.BIND)
            if flags & ~(MountFlag.BIND | MountFlag.REC):
                # A bind mount takes its flags only in a second call (mount(2)).
                linux.mount("", point, "", flags | MountFlag.BIND | MountFlag.REMOUNT)
        case "local":
            mode = next((o[5:] for o in storage.options if o.startswith("mode=")), "0755")
            _make_directory(point)
            try:
                Path(point).chmod(int(mode, 8))
            except ValueError:
                raise InvalidError(f"mode {mode!r} of a local storage is not octal") from None
            return False
        case other:
            raise InvalidError(f"there is no storage driver {other!r}; there are {', '.join(DRIVERS)}")
    if propagation:
        linux.mount("", point, "", propagation)
    return True


def _make_directory(path: str) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)


def _make_target(source: str, path: str) -> None:
    """A directory for a directory, an empty file for anything else."""
    if Path(source).is_dir():
        _make_directory(path)
    else:
        _make_directory(str(Path(path).parent))
        Path(path).touch()
