"""Mounts by descriptor: copies of what is mounted somewhere, made harmless before anybody can see them.

A copy is detached: no path leads to it until it is attached. So there is no moment at which a guest could write what
it shall only read, and nothing that is copied or attached is named by a path that could change meanwhile. The system
calls are Linux 5.12's.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kata_common import linux
from kata_runtime.errors import RootfsError

__all__ = [
    "Submount",
    "attached",
    "change",
    "copied",
    "copied_path",
    "mounted_below",
    "submounts",
    "unmount_below",
]


@contextmanager
def copied(source: int, name: str) -> Iterator[int]:
    """A detached copy of what is at the descriptor `source` with all that is mounted below; `name` is for errors.

    Raises:
        RootfsError: it can't be copied.
    """
    with _told(f"{name} can't be bind-mounted"):
        tree = linux.open_tree(source)
    try:
        yield tree
    finally:
        os.close(tree)


@contextmanager
def copied_path(path: Path) -> Iterator[int]:
    """`copied` of a directory of ours."""
    with _opened(path) as source, copied(source, str(path)) as tree:
        yield tree


def change(tree: int, name: str, attributes: int, propagation: int = 0, *, below: bool = True) -> None:
    """Set attributes (MountAttribute) and propagation (MountFlag) of a mount and of all that is mounted `below` it.

    Raises:
        RootfsError: it can't be done.
    """
    with _told(f"the attributes of a copy of {name} can't be set"):
        linux.mount_setattr(tree, attributes, propagation, below=below)


@contextmanager
def attached(tree: int, home: Path, name: str) -> Iterator[None]:
    """Mount a detached copy at `name` below `home` for the block; no symlink is followed below `home`.

    Raises:
        RootfsError: it can't be.
    """
    with _opened(home) as directory, _told(f"nothing can be mounted at {home / name}"):
        target = linux.open_beneath(directory, name, os.O_PATH)
        try:
            linux.move_mount(tree, target)
        finally:
            os.close(target)
    try:
        yield
    finally:
        with _opened(home) as directory:
            _detach(directory, name)


def unmount_below(directory: Path) -> None:
    """Detach all that is mounted at or below `directory`; below it, no symlink is followed. Nothing there is fine.

    What is mounted below another mount goes with that one, so that nothing is looked up in what a guest may write.

    Raises:
        RootfsError: something can't be detached.
    """
    points = mounted_below(directory)
    while points:
        top = os.path.realpath(directory)
        with _opened(directory) as opened:
            for point in points:
                if not any(point.startswith(f"{other}/") for other in points):
                    _detach(opened, os.path.relpath(point, top))
        left = mounted_below(directory)
        if len(left) >= len(points):
            raise RootfsError(f"still mounted below {directory}: {', '.join(left)}")
        points = left


def mounted_below(directory: Path) -> list[str]:
    """Mount points at or below `directory`, as this process sees them."""
    prefix = os.path.realpath(directory)
    names = [point for point, _ in _mount_points()]
    return [name for name in names if name == prefix or name.startswith(f"{prefix}/")]


class Submount(NamedTuple):
    """What is mounted at `path` below a directory, by its device (`major:minor`)."""

    path: str
    device: str


def submounts(directory: str) -> tuple[Submount, ...]:
    """What is mounted below `directory`, a resolved path, as this process sees it; sorted."""
    prefix = f"{directory.rstrip('/')}/"
    below = (found for found in _mount_points() if found[0].startswith(prefix))
    return tuple(sorted({Submount(point.removeprefix(prefix), device) for point, device in below}))


def _mount_points() -> Iterator[tuple[str, str]]:
    """Each with its device."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        # The kernel writes blanks and backslashes in octal.
        yield os.fsdecode(re.sub(rb"\\([0-7]{3})", _character, fields[4])), fields[2].decode()


def _character(octal: "re.Match[bytes]") -> bytes:
    return bytes([int(octal[1], 8)])


def _detach(directory: int, name: str) -> None:
    """Unmount what is on top at `name` below the open `directory`; nothing there is fine."""
    with _told(f"{name} can't be unmounted"):
        try:
            found = linux.open_beneath(directory, name, os.O_PATH)
        except FileNotFoundError:
            return
        try:
            # By descriptor it is this very mount, whatever the path may lead to by now.
            linux.umount(f"/proc/self/fd/{found}")
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is not a mount point
                raise
        finally:
            os.close(found)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "this needs Linux 5.12 or later" if error.errno == errno.ENOSYS else ""
        raise RootfsError(f"{what}: {error.strerror}", hint=hint) from error


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    with _told(f"{directory} can't be opened"):
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
