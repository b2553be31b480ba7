"""Removal of trees that others made: however deep and wide, whatever the names, and without leaving them.

Every step is relative to an open directory (no path that is longer than one name, no symlink), and one directory is
open at a time: on the way up `..` is opened and has to be the directory that was left. So neither the stack, nor
descriptors, nor PATH_MAX set a limit to what can be removed.
"""

import errno
import os
import time

from kata_common.text import printable

__all__ = ["Leftovers", "remove_tree"]

# Names that are read of a directory at once.
_BATCH = 4096
# Entries that are named, and levels of their paths.
_NAMED = 5
_LEVELS = 6
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Leftovers:
    """What could not be removed; false where all went. `unfinished` where time was over before the rest was tried."""

    __slots__ = ("count", "named", "unfinished")  # no dataclass: the agent would have to import dataclasses

    def __init__(self) -> None:
        self.count = 0
        self.named: list[str] = []
        self.unfinished = False

    def __bool__(self) -> bool:
        return self.count > 0 or self.unfinished

    def __str__(self) -> str:
        said = [*self.named]
        if self.count > len(self.named):
            said.append(f"{self.count - len(self.named)} more")
        if self.unfinished:
            said.append("the rest was not tried for lack of time")
        return "; ".join(said)

    def add(self, path: list[str], reason: str) -> None:
        """One entry stays."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{_shown(path)}: {reason}")

    def take(self, other: "Leftovers") -> None:
        """Those of another tree as well."""
        self.named = [*self.named, *other.named][:_NAMED]
        self.count += other.count
        self.unfinished |= other.unfinished


def remove_tree(path: str | os.PathLike[str], *, files: bool = True, until: float = float("inf")) -> Leftovers:
    """Remove what is at `path`, a file or a directory with all that is below it, and say what could not be.

    Nothing there is fine. Mount points stay, and so does what is mounted. Without `files` only directories are removed
    (cgroups). After `until` (monotonic, s) what is left stays for another time. The parent's path is trusted.

    Raises:
        OSError: the parent can't be opened.
    """
    parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 -- the agent's start has no pathlib to spare
    try:
        top = os.open(parent, _DIRECTORY & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return Leftovers()
    removal = _Removal(top, parent, files, until)
    try:
        removal.run(name)
    finally:
        removal.close()
    return removal.left


class _Level:
    """A directory on the way; what is not open of it is kept here."""

    __slots__ = ("identity", "kept", "more", "name", "pending")

    def __init__(self, name: str, identity: tuple[int, int]) -> None:
        self.name = name
        self.identity = identity
        # Directories in it that are not empty, what stays in it, and whether it has more names than were read.
        self.pending: list[str] = []
        self.kept: set[str] = set()
        self.more = False


class _Removal:
    """One removal; `_here` is the open directory, the last of `_way`."""

    def __init__(self, top: int, parent: str, files: bool, until: float) -> None:
        self.left = Leftovers()
        self._files = files
        self._until = until
        self._here = top
        self._way = [_Level(parent, _identity(top))]
        self._device = -1

    def run(self, name: str) -> None:
        level = self._way[0]
        self._remove(name, directory=False)
        while not self.left.unfinished:
            if level.pending:
                self._enter(level.pending.pop())
            elif level.more:
                self._scan(level)
            elif len(self._way) == 1 or not self._leave():
                return
            level = self._way[-1]

    def close(self) -> None:
        os.close(self._here)

    def _remove(self, name: str, *, directory: bool) -> None:
        """Remove one entry of the open directory, or note why it stays, or that there is more below it."""
        level = self._way[-1]
        try:
            if directory:
                # Before anything of it is touched: this fails for a mount point.
                os.rmdir(name, dir_fd=self._here)
            elif self._files or len(self._way) == 1:
                os.unlink(name, dir_fd=self._here)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            self._remove(name, directory=True)
        except OSError as error:
            if directory and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                level.pending.append(name)
            elif directory and error.errno == errno.EBUSY and not self._files:
                # A cgroup with cgroups in it is busy, too.
                level.pending.append(name)
            else:
                self._keep(name, error.strerror or str(error))

    def _keep(self, name: str, reason: str) -> None:
        self._way[-1].kept.add(name)
        self.left.add([*(level.name for level in self._way), name], reason)

    def _enter(self, name: str) -> None:
        level = self._way[-1]
        try:
            child = os.open(name, _DIRECTORY, dir_fd=self._here)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._keep(name, error.strerror or str(error))
            return
        identity = _identity(child)
        self._device = identity[0] if len(self._way) == 1 else self._device
        if identity[0] != self._device:
            os.close(child)
            self._keep(name, "another file system is mounted there")
            return
        os.close(self._here)
        self._here = child
        self._way.append(level := _Level(name, identity))
        self._scan(level)

    def _scan(self, level: _Level) -> None:
        """Remove what is in the open directory as far as it has nothing below it."""
        if time.monotonic() > self._until:
            self.left.unfinished = True
            return
        level.more = False
        found: list[tuple[str, bool]] = []
        try:
            with os.scandir(self._here) as entries:
                for entry in entries:
                    directory = entry.is_dir(follow_symlinks=False)
                    if entry.name in level.kept or not (directory or self._files):
                        continue
                    found.append((entry.name, directory))
                    if len(found) == _BATCH:
                        level.more = True
                        break
        except OSError as error:
            self._keep("", error.strerror or str(error))
        for name, directory in found:
            self._remove(name, directory=directory)

    def _leave(self) -> bool:
        """Go up and remove the directory that is behind us; False where it isn't in its place any more."""
        left = self._way.pop()
        level = self._way[-1]
        above = os.open("..", _DIRECTORY, dir_fd=self._here)
        os.close(self._here)
        self._here = above
        if _identity(above) != level.identity:
            self._keep(left.name, "it was moved while it was removed")
            return False
        if left.kept:
            level.kept.add(left.name)
            return True
        try:
            os.rmdir(left.name, dir_fd=above)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._keep(left.name, error.strerror or str(error))
        return True


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _shown(path: list[str]) -> str:
    """The path, without the middle of one that is deep."""
    if len(path) > 2 * _LEVELS:
        path = [*path[:_LEVELS], f"… {len(path) - 2 * _LEVELS} directories …", *path[-_LEVELS:]]
    return "/".join(printable(name, 255) for name in path)
