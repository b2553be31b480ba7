"""Files that the host sends by CopyFile: below one directory, whatever a container has made of its part of it."""

import os
import stat
from contextlib import suppress
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError, SetupError
from kata_common.linux import open_beneath

__all__ = ["BASE", "MAX_PART", "Part", "copy"]

# Kata's (CONTAINER_BASE of its agent).
BASE: Final = "/run/kata-containers"
# Bytes of one message.
MAX_PART: Final = 1 << 20
_UNFINISHED: Final = ".kata-part"


class Part(NamedTuple):
    """A part of a file, or a whole one, a directory or a symlink (whose target is `data`); see CopyFileRequest."""

    path: str
    size: int
    mode: int
    parents_mode: int
    uid: int
    gid: int
    offset: int
    data: bytes


def copy(part: Part, base: str = "") -> None:
    """Put it below `base` (by default BASE), and a file when it is whole.

    What was there is replaced, but for a directory by one. Symlinks are never followed.

    Raises InvalidError, SetupError.
    """
    base = base or BASE
    names = part.path.removeprefix(f"{base}/").split("/")
    if not part.path.startswith(f"{base}/") or not all(names) or {".", ".."} & set(names) or "\0" in part.path:
        raise InvalidError(f"CopyFile to {part.path[:120]!r}: expected a path below {base}")
    fits = len(part.data) <= MAX_PART and 0 <= part.offset <= part.offset + len(part.data) <= part.size
    if stat.S_IFMT(part.mode) in (0, stat.S_IFREG) and not fits:
        raise InvalidError(
            f"CopyFile to {part.path[:120]!r}: {len(part.data)} bytes at {part.offset} of {part.size} (at most "
            f"{MAX_PART} at once)"
        )
    try:
        os.makedirs(base, exist_ok=True)  # noqa: PTH103
        top = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            home = _home(top, names[:-1], part)
        finally:
            os.close(top)
        try:
            _place(home, names[-1], part)
        finally:
            os.close(home)
    except OSError as error:
        raise SetupError(f"CopyFile to {part.path[:120]!r}: {error.strerror}") from error


def _home(top: int, names: list[str], part: Part) -> int:
    """The directory that it goes to; parents that are missing are made, the last one for its owner."""
    here = os.dup(top)
    for number, name in enumerate(names):
        made = False
        with suppress(FileExistsError):
            os.mkdir(name, part.parents_mode & 0o7777 or 0o750, dir_fd=here)
            made = True
        try:
            below = open_beneath(here, name, os.O_PATH | os.O_DIRECTORY)
        finally:
            os.close(here)
        here = below
        if made and number == len(names) - 1:
            os.chown(".", part.uid, part.gid, dir_fd=here)
    return here


def _place(home: int, name: str, part: Part) -> None:
    match stat.S_IFMT(part.mode):
        case stat.S_IFDIR:
            _remove(home, name, directory=False)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=home)
            made = open_beneath(home, name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fchown(made, part.uid, part.gid)
                os.fchmod(made, stat.S_IMODE(part.mode))
            finally:
                os.close(made)
        case stat.S_IFLNK:
            _remove(home, name)
            os.symlink(part.data, os.fsencode(name), dir_fd=home)
            os.chown(name, part.uid, part.gid, dir_fd=home, follow_symlinks=False)
        case 0 | stat.S_IFREG:
            _write(home, name, part)
        case other:
            raise InvalidError(f"CopyFile to {part.path[:120]!r}: {other:o} is none of file, directory and symlink")


def _write(home: int, name: str, part: Part) -> None:
    partial = f"{name}{_UNFINISHED}"
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not part.offset:
        _remove(home, partial)
        flags |= os.O_CREAT | os.O_EXCL
    file = os.open(partial, flags, 0o600, dir_fd=home)
    try:
        at, left = part.offset, memoryview(part.data)
        while left:
            count = os.pwrite(file, left, at)
            at, left = at + count, left[count:]
        if at < part.size:
            return
        os.ftruncate(file, part.size)
        os.fchown(file, part.uid, part.gid)
        os.fchmod(file, stat.S_IMODE(part.mode))
    finally:
        os.close(file)
    _remove(home, name)
    os.rename(partial, name, src_dir_fd=home, dst_dir_fd=home)


def _remove(home: int, name: str, *, directory: bool = True) -> None:
    """Make room for what gets this name: only an empty `directory` gives way."""
    try:
        os.unlink(name, dir_fd=home)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):  # what unlink(2) says of a directory
        if directory:
            os.rmdir(name, dir_fd=home)
