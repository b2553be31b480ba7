"""Mounts of the host as context managers, and the mount namespace that they are in."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_common import linux
from kata_common.linux import MountFlag
from kata_runtime.errors import RootfsError

__all__ = ["Mount", "mounted", "overlay", "private_mount_namespace", "root_is_shared"]

_PAGE = 4096


def _mount(source: str, target: Path, fstype: str, flags: int, data: str, what: str) -> None:
    try:
        linux.mount(source, target, fstype, flags, data)
    except OSError as error:
        raise RootfsError(f"{what}: {error.strerror}") from error


def _unshare(flags: int, what: str) -> None:
    try:
        linux.unshare(flags)
    except OSError as error:
        raise RootfsError(f"{what}: {error.strerror}") from error


@dataclass(frozen=True)
class Mount:
    """A mount as mount(8) and containerd write it: options are flags' names and the file system's own."""

    kind: str
    source: str
    options: tuple[str, ...] = ()


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Do all of these at `target`, an existing directory, one over the other, for the block.

    Raises:
        RootfsError: one can't be done; none is left then.
    """
    target = target.resolve()
    with ExitStack() as stack:
        for mount in mounts:
            _mount_one(mount, target)
            stack.callback(_unmount, target)
        yield target


def _mount_one(mount: Mount, target: Path) -> None:
    flags, propagation, rest = linux.mount_flags(mount.options)
    for option in rest:
        if option == "loop" or option.startswith(("loop=", "X-")):
            raise RootfsError(f"{mount.source} can't be mounted: option {option!r} is not supported")
    if propagation:
        raise RootfsError(f"{mount.source} can't be mounted: a root file system has no mount propagation of its own")
    what = f"{mount.source} ({mount.kind or 'bind'}) can't be mounted at {target}"
    if mount.kind == "bind" or flags & MountFlag.BIND:
        _mount(mount.source, target, "", MountFlag.BIND | (flags & MountFlag.REC), "", what)
        if change := flags & ~(MountFlag.BIND | MountFlag.REC):
            # A bind mount takes its flags only in a second call (mount(2)).
            try:
                _mount("none", target, "", MountFlag.BIND | MountFlag.REMOUNT | change, "", what)
            except RootfsError:
                _unmount(target)
                raise
        return
    if len(",".join(rest).encode()) < _PAGE:
        _mount(mount.source, target, mount.kind, flags, ",".join(rest), what)
    else:
        _mount_long(mount, target, flags, rest, what)


def _mount_long(mount: Mount, target: Path, flags: int, options: Sequence[str], what: str) -> None:
    """mount(2) takes one page of options; paths of many layers get shorter relative to where all of them are."""
    lower = next((option[9:].split(":") for option in options if option.startswith("lowerdir=")), [])
    common = os.path.commonpath(lower) if lower else ""
    short = ":".join(os.path.relpath(path, common) for path in lower)
    data = ",".join(f"lowerdir={short}" if option.startswith("lowerdir=") else option for option in options)
    if not common or len(data.encode()) >= _PAGE:
        raise RootfsError(f"{what}: its options are longer than the {_PAGE} bytes that Linux takes")
    failure: list[RootfsError] = []

    def work() -> None:
        try:
            # The working directory of this thread alone.
            _unshare(linux.CLONE_FS, "a thread can't have its own working directory")
            os.chdir(common)
            _mount(mount.source, target, mount.kind, flags, data, what)
        except RootfsError as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


_private = False


def private_mount_namespace() -> None:
    """Give this process a mount namespace of its own, so that its mounts end with it however it ends.

    Mounts of the host still arrive (slave). Where they could not, because the host's `/` shares nothing, the process
    stays where it is: a volume that is mounted later would be an empty directory. What it mounts there is unmounted
    with its sandbox, by whoever removes that. Needs a process without other threads; a second call does nothing.

    Raises:
        RootfsError: not permitted.
    """
    global _private  # noqa: PLW0603 - a process has one
    if _private or not root_is_shared(Path("/proc/self/mountinfo").read_text(errors="replace")):
        return
    _unshare(linux.CLONE_NEWNS, "a mount namespace can't be made")
    _mount("none", Path("/"), "", MountFlag.REC | MountFlag.SLAVE, "", "mount propagation can't be changed")
    _private = True


def root_is_shared(mountinfo: str) -> bool:
    """Whether what is mounted at / is shared, so that copies of it hear of later mounts (proc(5))."""
    shared = False
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if fields[4] == "/":  # the last one lies on top
            shared = any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return shared


@contextmanager
def overlay(lower: Path, upper: Path, work: Path, target: Path) -> Iterator[Path]:
    """Show `lower` at `target` for the block; what is written goes to `upper`, `lower` stays as it is."""
    data = ",".join(
        f"{key}={_escaped(path)}" for key, path in (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    )
    _mount("overlay", target, "overlay", MountFlag.NODEV, data, f"an overlay over {lower} can't be mounted")
    try:
        yield target
    finally:
        _unmount(target)


def _unmount(target: Path) -> None:
    """Detach what is mounted at `target`, which is no symlink; nothing there is fine."""
    try:
        linux.umount(target, linux.MNT_DETACH | linux.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # not a mount point; not there
            raise RootfsError(f"{target} can't be unmounted: {error.strerror}") from error


def _escaped(path: Path) -> str:
    # Overlay's option syntax: backslash, comma and colon are escaped.
    return "".join(f"\\{char}" if char in "\\,:" else char for char in str(path))
