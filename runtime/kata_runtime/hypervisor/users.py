"""A user for each machine of this host, without a name and without rights, so that no machine can touch another's.

    /run/kata/.uid-<number>   an empty file, locked as long as any process runs as that user

The locks are those of open files (OFD, fcntl(2)), which end with the last holder of the file, however that ends: who
makes a machine holds one, and each process that runs as the user inherits a file that holds another. So a user whose
runtime was killed stays taken while its machine lives, and is free afterwards. Nobody can give away what another one
holds: a machine's process has a file of its own, open for reading, which has no power over any other user either.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_common import places
from kata_runtime.errors import HostError

__all__ = ["User", "Users"]

# A range that neither systemd nor subordinate ids use (systemd's UIDS-GIDS.md).
_BASE: Final = 0x7000_0000
_COUNT: Final = 0x0800_0000
# No sandbox has a name with a dot in front.
_PREFIX: Final = ".uid-"
# struct flock: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = struct.Struct("hhqqi4x")


@dataclass(frozen=True, slots=True)
class User:
    """`uid` is its group as well; `lease` a descriptor that its processes inherit."""

    uid: int
    lease: int


class Users:
    """All users that there may be: `count` numbers from `base` on."""

    def __init__(self, directory: Path = Path(places.RUN_DIR), *, base: int = _BASE, count: int = _COUNT) -> None:
        self._directory = directory
        self._base = base
        self._count = count

    @contextmanager
    def taken(self, name: str) -> Iterator[User]:
        """A user that nobody else on this host has, for the block; the same for the same `name` where that is free.

        Raises:
            HostError: all are taken, or the locks can't be had.
        """
        first = zlib.crc32(name.encode())
        with ExitStack() as stack:
            try:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                for step in range(self._count):
                    uid = self._base + (first + step) % self._count
                    if (lease := self._take(uid, stack)) is not None:
                        break
                else:
                    raise HostError(
                        f"all {self._count} user ids of sandboxes are taken, from {self._base} on",
                        hint=f"stop some sandboxes; who holds one has {self._directory}/{_PREFIX}NUMBER open",
                    )
            except OSError as error:
                raise HostError(f"{error.filename}: {error.strerror}", hint="are you root?") from error
            yield User(uid, lease)

    def _take(self, uid: int, stack: ExitStack) -> int | None:
        """The lease of a user that is free, else None; `stack` gives it back."""
        path = self._path(uid)
        while True:
            ours = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if not _lock(ours, fcntl.F_WRLCK):
                    return None
                if not _is_at(ours, path):
                    continue  # its last holder removed it between our open and our lock
                lease = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                # One kind of lock becomes the other in one step, so nobody else comes between.
                _lock(ours, fcntl.F_RDLCK)
                _lock(lease, fcntl.F_RDLCK)
                stack.callback(_give_back, os.dup(ours), lease, path)
                return lease
            finally:
                os.close(ours)

    def sweep(self) -> None:
        """Remove the files of users that nobody has any more: those of killed runtimes."""
        with suppress(FileNotFoundError):
            for entry in self._directory.iterdir():
                if entry.name.startswith(_PREFIX):
                    with suppress(OSError):
                        _give_back(os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), -1, entry)

    def _path(self, uid: int) -> Path:
        return self._directory / f"{_PREFIX}{uid}"


def _give_back(ours: int, lease: int, path: Path) -> None:
    """Close both, and remove the file unless somebody else still has it."""
    try:
        if lease >= 0:
            os.close(lease)
        with suppress(OSError):
            if _lock(ours, fcntl.F_WRLCK) and _is_at(ours, path):
                path.unlink()
    finally:
        os.close(ours)


def _lock(fd: int, kind: int) -> bool:
    """Take the lock, or turn ours into one of this kind; False where others hold what forbids it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
