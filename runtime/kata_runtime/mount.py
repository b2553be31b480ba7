"""mount(2), umount2(2) and unshare(2); CPython 3.11 has none of them."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_runtime.errors import RootfsError

__all__ = ["bind", "mounted_below", "overlay", "private_mount_namespace", "unmount"]

# linux/mount.h, linux/sched.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 32, 4096, 16384
_MS_SLAVE, _MS_SHARED = 1 << 19, 1 << 20
_MNT_DETACH = 2
_CLONE_NEWNS = 0x20000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise RootfsError(f"{what}: {os.strerror(code)}")


def _mount(source: str, target: Path, fstype: str, flags: int, data: str, what: str) -> None:
    arguments = (
        source.encode(),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _checked(_libc().mount(*arguments), what)


def private_mount_namespace() -> None:
    """Give this process a mount namespace of its own, so that its mounts end with it however it ends.

    Mounts of the host still arrive (slave). Needs a process without other threads.

    Raises:
        RootfsError: not permitted.
    """
    _checked(_libc().unshare(_CLONE_NEWNS), "a mount namespace can't be made")
    _mount("none", Path("/"), "", _MS_REC | _MS_SLAVE, "", "mount propagation can't be changed")


@contextmanager
def shared_mount_point(directory: Path) -> Iterator[Path]:
    """Make `directory` a mount whose later submounts reach whoever cloned the namespace meanwhile (virtiofsd)."""
    _mount(str(directory), directory, "", _MS_BIND | _MS_REC, "", f"{directory} can't be bind-mounted")
    try:
        _mount("none", directory, "", _MS_SHARED, "", f"{directory} can't be made a shared mount")
        yield directory
    finally:
        unmount(directory)


@contextmanager
def bind(source: Path, target: Path, *, readonly: bool = False) -> Iterator[Path]:
    """Show `source` at `target`, an existing directory, for the block."""
    _mount(str(source), target, "", _MS_BIND | _MS_REC, "", f"{source} can't be bind-mounted to {target}")
    try:
        if readonly:
            flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY
            _mount("none", target, "", flags, "", f"{target} can't be made read-only")
        yield target
    finally:
        unmount(target)


@contextmanager
def overlay(lower: Path, upper: Path, work: Path, target: Path) -> Iterator[Path]:
    """Show `lower` at `target` for the block; what is written goes to `upper`, `lower` stays as it is."""
    data = ",".join(
        f"{key}={_escaped(path)}" for key, path in (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    )
    _mount("overlay", target, "overlay", _MS_NODEV, data, f"an overlay over {lower} can't be mounted")
    try:
        yield target
    finally:
        unmount(target)


def unmount(target: Path) -> None:
    """Detach what is mounted at `target`; nothing there is fine.

    Raises:
        RootfsError: it can't be detached.
    """
    if _libc().umount2(os.fsencode(target), _MNT_DETACH) != 0:
        code = ctypes.get_errno()
        if code not in (22, 2):  # EINVAL: not a mount point, ENOENT: not there
            raise RootfsError(f"{target} can't be unmounted: {os.strerror(code)}")


def mounted_below(directory: Path) -> list[str]:
    """Mount points at or below `directory`, as this process sees them."""
    prefix = str(directory)
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    # The kernel writes blanks and backslashes in octal.
    names = (point.encode().decode("unicode_escape") for point in points)
    return [name for name in names if name == prefix or name.startswith(f"{prefix}/")]


def _escaped(path: Path) -> str:
    # Overlay's option syntax: backslash, comma and colon are escaped.
    return "".join(f"\\{char}" if char in "\\,:" else char for char in str(path))
