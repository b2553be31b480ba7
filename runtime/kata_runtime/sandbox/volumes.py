"""What of the host the containers of a sandbox mount: one mount of each directory, however many of them have it.

To the guest one mount is one file system. Were there two of a directory, each file in it would be two: locks, sockets
and shared memory of one would not be the other's (docs/decisions/0060).
"""

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kata_common.linux import MountAttribute, MountFlag
from kata_runtime.errors import RootfsError
from kata_runtime.mount_tree import Submount, attached, change, copied, submounts
from kata_runtime.oci.kernel_files import OWN_DEVICES, refused
from kata_runtime.oci.spec import HostMount
from kata_runtime.sandbox.sockets import HostSocket
from kata_runtime.sandbox.sources import Identity, identity

__all__ = ["GUEST_SHARED", "HARMLESS", "VOLUMES", "Memory", "Shown", "Volumes", "protect"]

# Where the agent mounts the shared directory (Kata's path), and memory that containers share (Kata's, too).
GUEST_SHARED: Final = "/run/kata-containers/shared/containers"
_GUEST_MEMORY: Final = "/run/kata-containers/sandbox/ephemeral"
# The directory of these mounts; no container's id has a tilde.
VOLUMES: Final = "~volumes"
# Nothing on the host runs what is shared or uses its device nodes; the guest's own kernel heeds neither flag.
HARMLESS: Final = MountAttribute.NOSUID | MountAttribute.NODEV | MountAttribute.NOEXEC
# In the path of a directory that the kubelet made for this pod alone, empty.
_EMPTY_DIR: Final = "/kubernetes.io~empty-dir/"
_NO_FILES: Final = {"hugetlbfs": "huge pages of the host", "devpts": "terminals of the host"}
# A name means one thing for all of a guest's life: it remembers names.
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Memory:
    """A file system in the guest's memory at `place`, for the containers of the sandbox; `size` in bytes."""

    place: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass(slots=True)
class Shown:
    """What the guest has to do before a container is made: open `directories`, so that what is mounted there is one
    mount for all containers, make `memory`, and listen for `sockets`. `names` are those of the container's mounts that
    are directories.
    """

    names: set[str] = field(default_factory=set)
    directories: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    sockets: list[HostSocket] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one mount in the guest stands for: mounts of equal kinds are one, if the same is mounted below them."""

    identity: Identity
    writable: bool
    # Whether it is to show what is mounted below it later; what is writable does.
    follows: bool
    # Whether what is mounted below it is read-only, too; of what is writable it is not.
    deep: bool = False


@dataclass(slots=True)
class _Share:
    kind: _Kind
    name: str
    stack: ExitStack
    users: int = 0


def protect(tree: int, name: str, *, readonly: bool, follows: bool = False, deep: bool = True) -> None:
    """Make a copy fit to be shared; what is mounted below it later shows up as well where it `follows`.

    What is `readonly` is so with all that is mounted below it, unless it is not `deep`.
    """
    # What comes later comes with the host's own flags, so it comes to what is read-only only where that was asked for.
    propagation = MountFlag.PRIVATE if readonly and not follows else 0
    change(tree, name, HARMLESS | MountAttribute.RDONLY if readonly and deep else HARMLESS, propagation)
    if readonly and not deep:
        change(tree, name, MountAttribute.RDONLY, below=False)


class Volumes:
    """Those of one sandbox, in the directory VOLUMES of what the guest sees."""

    def __init__(self) -> None:
        self._shares: list[_Share] = []
        self._memory: dict[Identity, str] = {}

    @contextmanager
    def shown(
        self, home: Path, mounts: Sequence[HostMount], sources: Sequence[int]
    ) -> Iterator[tuple[list[str], Shown]]:
        """Show what a container mounts to the guest for the block; where each is, and what the guest has to do.

        A place is a path in the guest, absolute or relative to <container>/mounts.

        `home` is what becomes the top of the shared directory, `sources` are the mounts' open sources.

        Raises:
            RootfsError: something can't be shown.
        """
        shown = Shown()
        # Who writes a directory and who only reads it in the same container share it, whichever comes first.
        order = sorted(range(len(mounts)), key=lambda index: mounts[index].readonly)
        places = [""] * len(mounts)
        with ExitStack() as stack:
            for index in order:
                mount, source = mounts[index], sources[index]
                places[index] = (
                    self._socket(mount, source, shown, stack)
                    or self._own_device(mount, source)
                    or self._of_memory(mount, source, shown)
                    or stack.enter_context(self._share(home, mount, source, shown))
                )
            yield places, shown

    def _socket(self, mount: HostMount, source: int, shown: Shown, stack: ExitStack) -> str:
        """Where the guest listens in the place of a unix socket of the host; empty for what is none."""
        if not stat.S_ISSOCK(os.fstat(source).st_mode):
            return ""
        # As long as it is forwarded.
        descriptor = os.dup(source)
        stack.callback(os.close, descriptor)
        found = HostSocket(next(_numbers), descriptor, mount.source)
        shown.sockets.append(found)
        return found.place

    def _own_device(self, mount: HostMount, source: int) -> str:
        """The guest's own device in place of the host's; empty for what is no device. Refuses what can't be shared."""
        status = os.fstat(source)
        if stat.S_ISCHR(status.st_mode):
            device = OWN_DEVICES.get((os.major(status.st_rdev), os.minor(status.st_rdev)))
            if device:
                return device
        kinds = (stat.S_ISFIFO, "a fifo"), (stat.S_ISBLK, "a block device")
        what = next((words for is_kind, words in (*kinds, (stat.S_ISCHR, "a device")) if is_kind(status.st_mode)), "")
        if what or refused(_path(source)):
            raise RootfsError(
                f"mount at {mount.destination}: {mount.source} is {what or 'of the host kernel alone'}, "
                "whose other end is on the host: a VM can't have it",
                hint="mount the directory that a socket of the pod's own lies in, or leave it out",
            )
        return ""

    def _of_memory(self, mount: HostMount, source: int, shown: Shown) -> str:
        """Where the guest has its own memory in place of an emptyDir of medium Memory; empty for anything else."""
        top, kind = identity(source), _filesystem(source)
        if reason := _NO_FILES.get(kind):
            raise RootfsError(
                f"mount at {mount.destination}: {mount.source} is on {kind}: {reason}, which a VM can't have"
            )
        if kind != "tmpfs" or not _is_empty_dir(mount.source):
            return ""
        place = self._memory.setdefault(top, f"{_GUEST_MEMORY}/{next(_numbers)}")
        status, size = os.fstat(source), os.fstatvfs(source)
        mode = stat.S_IMODE(status.st_mode)
        shown.memory.append(Memory(place, size.f_blocks * size.f_frsize, mode, status.st_uid, status.st_gid))
        return place

    @contextmanager
    def _share(self, home: Path, mount: HostMount, source: int, shown: Shown) -> Iterator[str]:
        below = submounts(_path(source))
        share = self._found(home, mount, source, below)
        if share is None:
            share = self._made(home, mount, source)
            self._shares.append(share)
        share.users += 1
        try:
            place = f"{GUEST_SHARED}/{VOLUMES}/{share.name}"
            if stat.S_ISDIR(os.fstat(source).st_mode):
                shown.names.add(mount.name)
                shown.directories += [place, *(f"{place}/{name}" for name, _ in below)]
            yield f"../../{VOLUMES}/{share.name}"
        finally:
            share.users -= 1
            if not share.users:
                self._shares.remove(share)
                share.stack.close()

    def _found(self, home: Path, mount: HostMount, source: int, below: tuple[Submount, ...]) -> _Share | None:
        """One that is there already: a writer's, else one of the same kind."""
        kind = _kind(mount, source)
        # A reader sees a writer's locks only where both have the same mount.
        writable = not _is_readonly(source)
        written = replace(kind, writable=writable, follows=True, deep=kind.deep and not writable)
        for wanted in (written, kind):
            for share in self._shares:
                # What the host mounted since then is below both, or below one of them.
                if share.kind == wanted and submounts(os.path.realpath(home / VOLUMES / share.name)) == below:
                    return share
        return None

    def _made(self, home: Path, mount: HostMount, source: int) -> _Share:
        name, kind = str(next(_numbers)), _kind(mount, source)
        point = home / VOLUMES / name
        with ExitStack() as stack:
            point.parent.mkdir(exist_ok=True)
            stack.callback(_remove_empty, point.parent)
            if stat.S_ISDIR(os.fstat(source).st_mode):
                point.mkdir()
                stack.callback(point.rmdir)
            else:
                point.touch(exist_ok=False)
                stack.callback(point.unlink)
            with copied(source, mount.source) as tree:
                protect(tree, mount.source, readonly=not kind.writable, follows=kind.follows, deep=kind.deep)
                stack.enter_context(attached(tree, home, f"{VOLUMES}/{name}"))
            return _Share(kind, name, stack.pop_all())


def _kind(mount: HostMount, source: int) -> _Kind:
    # Of an emptyDir a writer will come.
    writable = not _is_readonly(source) and (not mount.readonly or _is_empty_dir(mount.source))
    return _Kind(identity(source), writable, writable or mount.follows, not writable and mount.deep)


def _is_readonly(source: int) -> bool:
    return bool(os.fstatvfs(source).f_flag & os.ST_RDONLY)


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):
        directory.rmdir()


def _is_empty_dir(source: str) -> bool:
    return _EMPTY_DIR in source


def _path(source: int) -> str:
    """Where an open file or directory lies, whatever symlinks led to it."""
    return str(Path(f"/proc/self/fd/{source}").readlink())


def _filesystem(source: int) -> str:
    """The type of the file system that an open file or directory is on; empty where it is not to be found."""
    device = os.fstat(source).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[2] == wanted:
            return os.fsdecode(fields[fields.index(b"-") + 1])
    return ""
