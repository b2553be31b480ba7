"""Opening files of a root filesystem that somebody else made: no symlink, `..` or fifo in it leads us astray."""

import errno
import os
import stat
from pathlib import Path

from kata_common.linux import open_inside
from kata_runtime.errors import RootfsError

__all__ = ["NotRegularError", "read_inside"]


class NotRegularError(RootfsError):
    """There is something, but no regular file."""


def _open_inside(root: Path, path: str) -> int:
    """Found with `root` as the root directory for absolute paths, symlinks and `..` alike.

    What is found is not opened yet (O_PATH): a fifo would block us, a device may do anything, a terminal become ours.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_inside(directory, path, os.O_PATH)
    finally:
        os.close(directory)


def read_inside(root: Path, path: str, limit: int) -> bytes | None:
    """The bytes of the regular file `path` below `root`, as a process chrooted there would see it; None without one.

    Raises:
        NotRegularError: it is no regular file.
        RootfsError: `root` is no directory, or the file is longer than `limit` bytes, or unreadable.
    """
    try:
        descriptor = _open_inside(root, path)
    except OSError as error:
        if error.filename == path and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise RootfsError(f"{error.filename} can't be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(f"{path} in {root} is not a regular file")
        try:
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise RootfsError(f"{path} in {root} can't be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise RootfsError(f"{path} in {root} is longer than {limit} bytes")
    return content
