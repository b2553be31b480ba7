"""Opening files of a root filesystem that somebody else made: no symlink, `..` or fifo in it leads us astray."""

import ctypes
import errno
import os
import stat
from pathlib import Path

from kata_runtime.errors import RootfsError

__all__ = ["read_inside"]

# linux/openat2.h; the number is the same on every architecture (linux/asm-generic/unistd.h).
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _open_inside(root: Path, path: str) -> int:
    """openat2(2) with `root` as the root directory for absolute paths, symlinks and `..` alike."""
    # A fifo or device must not block us, nor a terminal become ours.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    how = _OpenHow(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        size = ctypes.c_size_t(ctypes.sizeof(how))
        descriptor = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), os.fsencode(path), ctypes.byref(how), size
        )
    finally:
        os.close(directory)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int(descriptor)


def read_inside(root: Path, path: str, limit: int) -> bytes | None:
    """The bytes of the regular file `path` below `root`, as a process chrooted there would see it; None without one.

    Raises:
        RootfsError: `root` is no directory, or the file is longer than `limit` bytes, not a regular one, or unreadable.
    """
    try:
        descriptor = _open_inside(root, path)
    except OSError as error:
        if error.filename == path and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise RootfsError(f"{error.filename} can't be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RootfsError(f"{path} in {root} is not a regular file")
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise RootfsError(f"{path} in {root} can't be read: {error.strerror}") from error
    if len(content) > limit:
        raise RootfsError(f"{path} in {root} is longer than {limit} bytes")
    return content
