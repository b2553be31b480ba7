"""Opening files of a root filesystem that somebody else made: no symlink, `..` or fifo in it leads us astray."""

import errno
import os
import stat
from pathlib import Path

from kata_common.linux import open_inside
from kata_runtime.errors import RootfsError

__all__ = ["read_inside"]


def _open_inside(root: Path, path: str) -> int:
    """Opened with `root` as the root directory for absolute paths, symlinks and `..` alike."""
    # A fifo or device must not block us, nor a terminal become ours.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_inside(directory, path, flags)
    finally:
        os.close(directory)


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
