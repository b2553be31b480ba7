"""Files of a root filesystem that somebody else writes: no symlink, `..`, fifo or device in it leads us astray."""

import errno
import os
import posixpath
import stat
from pathlib import Path

from kata_common.linux import Resolve, open_beneath
from kata_runtime.errors import RootfsError

__all__ = ["NotRegularError", "make_inside", "read_inside"]

# As many symlinks as the kernel follows for one path (linux/namei.h, MAXSYMLINKS).
_MAX_LINKS = 40


class NotRegularError(RootfsError):
    """There is something, but no regular file."""


def _open_inside(root: Path, path: str) -> int:
    """Found with `root` as the root directory for absolute paths, symlinks and `..` alike.

    What is found is not opened yet (O_PATH): a fifo would block us, a device may do anything, a terminal become ours.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(directory, path, os.O_PATH, Resolve.IN_ROOT)
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


def make_inside(root: int, path: str, *, directory: bool) -> None:
    """See to it that there is something at `path` below the open `root`, as a process chrooted there would name it.

    What is missing of it is made: directories, and at the end a directory or an empty file. What is there stays.

    Raises:
        OSError: it can't be made.
    """
    parts = [part for part in path.split("/") if part and part != "."]
    links = 0
    above = "/"
    while parts:
        name = parts.pop(0)
        place = posixpath.join(above, name)
        target = _made(root, above, name, directory=directory or bool(parts))
        if target is None:
            above = place
            continue
        # A symlink to nowhere, as /var/run -> /run in an image without /run: what it names is made.
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            above = "/"
        parts = [part for part in target.split("/") if part and part != "."] + parts


def _made(root: int, above: str, name: str, *, directory: bool) -> str | None:
    """Make `name` in the directory `above` unless it leads to something; for a symlink to nowhere, its target."""
    place = posixpath.join(above, name)
    try:
        os.close(open_beneath(root, place, os.O_PATH, Resolve.IN_ROOT))
        return None
    except FileNotFoundError:
        pass
    parent = open_beneath(root, above, os.O_PATH | os.O_DIRECTORY, Resolve.IN_ROOT)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=parent))
        return None
    except FileExistsError:
        return os.readlink(name, dir_fd=parent)
    finally:
        os.close(parent)
