"""Opening what of the host a container mounts, where a part of the way there may be a guest's to write.

A container with a writable volume can put a symlink where another container's volume is looked for. What such a symlink
leads to must itself be among what a guest may write, so nobody gets by it what they have not got already.
"""

import errno
import os
import stat
from collections.abc import Set as AbstractSet
from pathlib import Path

from kata_common.linux import open_beneath
from kata_runtime.errors import RootfsError

__all__ = ["Identity", "identity", "open_source", "writable_in"]

# As many symlinks as the kernel follows for one path (linux/namei.h, MAXSYMLINKS).
_MAX_LINKS = 40
_MISSING = (errno.ENOENT, errno.ENOTDIR)

Identity = tuple[int, int]


def identity(descriptor: int) -> Identity:
    """What tells a directory from all others of the host."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def writable_in(mounts: Path) -> set[Identity]:
    """The directories of the host that the guest may write, by what is mounted for its containers in `mounts`."""
    found = set()
    for point in (*mounts.glob("*/rootfs"), *mounts.glob("~volumes/*")):
        status = point.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) and not os.statvfs(point).f_flag & os.ST_RDONLY:
            found.add((status.st_dev, status.st_ino))
    return found


def open_source(path: Path, writable: AbstractSet[Identity]) -> int:
    """A descriptor (O_PATH) of `path`. A symlink that a guest may have made leads nowhere else.

    `writable` are the directories that a guest may write.

    Raises:
        RootfsError: it is not there, or a symlink leads from such a directory to what is in none.
    """
    walk = _Walk(writable)
    try:
        walk.go(_parts(str(path.absolute())))
    except OSError as error:
        missing = error.errno in _MISSING
        why = "which is not there" if missing else f"which can't be opened: {error.strerror}"
        raise RootfsError(f"the container mounts {path}, {why}", hint="see the bundle's mounts") from error
    else:
        if not walk.led_astray:
            return walk.taken()
        raise RootfsError(
            f"the container mounts {path}, which a symlink leads out of a directory that a container may write",
            hint="mount what it leads to, if that is meant",
        )
    finally:
        walk.close()


class _Walk:
    """From the host's root along a path, always knowing whether where it is may be written by a guest."""

    def __init__(self, writable: AbstractSet[Identity]) -> None:
        self._writable = writable
        self._here = _root()
        self._inside = False
        self._tempted = False

    @property
    def led_astray(self) -> bool:
        """Whether it is where a guest's symlink may have led it, and a guest's writing does not."""
        return self._tempted and not self._inside

    def go(self, parts: list[str]) -> None:
        """Walk these names; raises OSError."""
        links = 0
        while parts:
            name, *parts = parts
            at_top = identity(self._here) in self._writable
            self._inside = (self._inside or at_top) and not (at_top and name == "..")
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._here)
            if stat.S_ISLNK(os.fstat(found).st_mode):
                links += 1
                self._tempted = self._tempted or self._inside
                try:
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                    target = _followed(self._here, name, found)
                finally:
                    os.close(found)
                if isinstance(target, str):
                    parts = _parts(target) + parts
                    if not target.startswith("/"):
                        continue
                    found = _root()
                else:
                    found = target
                self._inside = False
            os.close(self._here)
            self._here = found
        self._inside = self._inside or identity(self._here) in self._writable

    def taken(self) -> int:
        """Where it is, for the caller to close."""
        found, self._here = self._here, -1
        return found

    def close(self) -> None:
        """Let go of where it is."""
        if self._here >= 0:
            os.close(self._here)


def _followed(here: int, name: str, link: int) -> str | int:
    """The target of a symlink; of one of the kernel's own (/proc/1/root), which has none, what it leads to."""
    try:
        os.close(open_beneath(here, name, os.O_PATH, 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=here)
    return os.readlink("", dir_fd=link)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part and part != "."]


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
