"""Root filesystems of containers, as the guest gets to see them."""

import os
import posixpath
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_common.files import exists, is_directory
from kata_common.linux import MountAttribute, MountFlag
from kata_runtime.errors import RootfsError
from kata_runtime.mount import Mount, mounted, overlay
from kata_runtime.mount_tree import attached, change, copied, copied_path
from kata_runtime.oci.disks import DiskNode
from kata_runtime.oci.inside import make_inside
from kata_runtime.oci.spec import HostMount
from kata_runtime.sandbox.disks import DiskMount
from kata_runtime.sandbox.sources import open_source, writable_in
from kata_runtime.sandbox.state import SandboxDirectory
from kata_runtime.sandbox.volumes import GUEST_SHARED, HARMLESS, Shown, protect
from kata_telemetry.span import Site

__all__ = [
    "GUEST_SHARED",
    "Rootfs",
    "guest_mounts",
    "guest_rootfs",
    "mount_points",
    "protect_mounts",
    "share_rootfs",
    "shared_directory",
]

_trace = Site(package="virtcontainers", subsystem="mount")


@dataclass(frozen=True)
class Rootfs:
    """A root filesystem on the host. With `ephemeral` the container's changes go to a layer that is thrown away.

    `layers` are to be mounted at `path` first. `mounts` are further files and directories of the host that the
    container mounts. `share` names its directory among what the guest sees (by default the container's id). `points`
    are the places in it that something is mounted at; they are made where a `readonly` one lacks them. With `disk` the
    guest has it by itself. `volumes` and `nodes` are block devices that the container has besides.
    """

    path: Path
    ephemeral: bool = False
    readonly: bool = False
    mounts: tuple[HostMount, ...] = ()
    layers: tuple[Mount, ...] = ()
    share: str = ""
    points: tuple[str, ...] = ()
    disk: DiskMount | None = None
    volumes: tuple[DiskMount, ...] = ()
    nodes: tuple[DiskNode, ...] = ()

    def check(self) -> None:
        """Refuse what can't be a root filesystem.

        Raises:
            RootfsError: not a directory, or not there.
        """
        if not exists(self.path):
            raise RootfsError(f"{self.path}: there is no such root filesystem")
        if not is_directory(self.path):
            raise RootfsError(f"{self.path} is not a directory", hint="for an archive or OCI layout use --image")


def guest_rootfs(share: str) -> str:
    """Path in the guest of a container's root filesystem; `share` is the container's id or `Rootfs.share`."""
    return f"{GUEST_SHARED}/{share}/rootfs"


def guest_mounts(share: str) -> str:
    """Directory in the guest that holds what a container mounts of the host, each under its name."""
    return f"{GUEST_SHARED}/{share}/mounts"


@contextmanager
def shared_directory(directory: SandboxDirectory) -> Iterator[None]:
    """Make `directory.shared`, for virtiofsd to export, show what is mounted in `directory.mounts` during the block.

    The guest writes nothing there but what lies in a mount that is itself writable. A helper that clones this mount
    namespace meanwhile gets later mounts, too.
    """
    with ExitStack() as stack:
        with copied_path(directory.mounts) as tree:
            change(tree, str(directory.mounts), HARMLESS, MountFlag.SHARED)
            stack.enter_context(attached(tree, directory.run, directory.mounts.name))
        with copied_path(directory.mounts) as tree:
            change(tree, str(directory.shared), HARMLESS | MountAttribute.RDONLY, MountFlag.SLAVE)
            stack.enter_context(attached(tree, directory.run, directory.shared.name))
        yield


@contextmanager
def share_rootfs(directory: SandboxDirectory, container_id: str, rootfs: Rootfs) -> Iterator[Shown]:
    """Show a root filesystem, and what the container mounts, to the guest for the block; what that has to do for it.

    Raises:
        RootfsError: it, or what the container mounts of the host, can't be shown.
    """
    if rootfs.disk is None:
        rootfs.check()
    name = rootfs.share or container_id
    home = directory.mounts / name
    with ExitStack() as stack:
        with _trace.stage("bindMountContainerRootfs", container_id=container_id, ephemeral=rootfs.ephemeral):
            for path in (home, home / "rootfs"):
                path.mkdir()
                stack.callback(path.rmdir)
            if rootfs.layers:
                with _trace.detail("mountRootfs", container_id=container_id, type=rootfs.layers[-1].kind):
                    stack.enter_context(mounted(rootfs.layers, rootfs.path))
            with _trace.detail("shareRootfs", container_id=container_id), _opened(directory, rootfs) as opened:
                if rootfs.disk is None:
                    with _root_tree(directory, container_id, rootfs, opened.root) as tree:
                        if rootfs.readonly:
                            _make_points(tree, rootfs, opened.mounts)
                        protect(tree, str(rootfs.path), readonly=rootfs.readonly)
                        stack.enter_context(attached(tree, directory.mounts, f"{name}/rootfs"))
                sources = [source for source, _ in opened.mounts]
                volumes = directory.volumes.shown(directory.mounts, rootfs.mounts, sources)
                places, shown = stack.enter_context(volumes)
                # Kept mounted in the guest's own namespace: else its kernel forgets what the container still uses.
                if rootfs.disk is None:
                    shown.directories.append(guest_rootfs(name))
                if rootfs.mounts:
                    _link_mounts(stack, home / "mounts", rootfs.mounts, places)
        try:
            yield shown
        finally:
            with _trace.span("bindUnmountContainerRootfs", container_id=container_id):
                stack.close()


@dataclass(frozen=True)
class _Opened:
    """Descriptors of what of the host a container gets, and whether each mount is a directory."""

    root: int
    mounts: tuple[tuple[int, bool], ...]


@contextmanager
def _opened(directory: SandboxDirectory, rootfs: Rootfs) -> Iterator[_Opened]:
    """All of it before any of it is shared, and so before its guest can write there."""
    writable = writable_in(directory.mounts)
    with ExitStack() as stack:

        def opened(path: Path) -> int:
            descriptor = open_source(path, writable)
            stack.callback(os.close, descriptor)
            return descriptor

        root = opened(rootfs.path) if rootfs.disk is None else -1
        mounts = [opened(Path(mount.source)) for mount in rootfs.mounts]
        yield _Opened(root, tuple((source, stat.S_ISDIR(os.fstat(source).st_mode)) for source in mounts))


def _link_mounts(stack: ExitStack, home: Path, mounts: Sequence[HostMount], places: Sequence[str]) -> None:
    """Name what a container mounts by symlinks, which the guest follows and the host never does."""
    home.mkdir()
    stack.callback(home.rmdir)
    for mount, place in zip(mounts, places, strict=True):
        link = home / mount.name
        link.symlink_to(place)
        stack.callback(link.unlink)


def _make_points(root: int, rootfs: Rootfs, opened: Sequence[tuple[int, bool]]) -> None:
    """Make the places in a root filesystem that mounts are made at: the guest can't, where it is read-only."""
    pairs = zip(rootfs.mounts, opened, strict=True)
    files = {_place(mount.destination) for mount, (_, is_directory) in pairs if not is_directory}
    for point in rootfs.points:
        try:
            make_inside(root, point, directory=point not in files)
        except OSError as error:
            why = error.strerror
            raise RootfsError(
                f"{rootfs.path} has no {point[:200]!r} to mount at, and it can't be made: {why}",
                hint="make it in the root filesystem",
            ) from error


@contextmanager
def _root_tree(directory: SandboxDirectory, container_id: str, rootfs: Rootfs, source: int) -> Iterator[int]:
    """The root filesystem as a detached mount."""
    if not rootfs.ephemeral:
        with copied(source, str(rootfs.path)) as tree:
            yield tree
        return
    upper, work, merged = (directory.layers / container_id / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir(parents=True)
    # The upper directory's own attributes become those of the container's root.
    root = rootfs.path.stat()
    os.chown(upper, root.st_uid, root.st_gid)
    upper.chmod(root.st_mode & 0o7777)
    with overlay(rootfs.path, upper, work, merged), copied_path(merged) as tree:
        yield tree


def protect_mounts(spec: Mapping[str, Any], mounts: str, shown: Shown) -> dict[str, Any]:
    """A specification whose read-only mounts of what is in `mounts` (guest) are so by the guest's own mount, too.

    Where others write it, that is the guest's to do. `ro` alone leaves what is mounted below as it is, as with runc;
    for a file `ro` says all, and crun takes no `rro`.
    """

    def protected(mount: Mapping[str, Any]) -> Mapping[str, Any]:
        options = list(mount.get("options") or ())
        home, _, name = (mount.get("source") or "").rpartition("/")
        if home != mounts or not {"ro", "rro"} & set(options):
            return mount
        kept = [option for option in options if option not in ("ro", "rro")]
        return {**mount, "options": [*kept, "ro", *(["rro"] if "rro" in options and name in shown.names else [])]}

    return {**spec, "mounts": [protected(mount) for mount in spec.get("mounts") or ()]}


def mount_points(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The places in the root filesystem of an OCI specification that crun would make, where they are missing.

    Those of its mounts, but for what lies in another mount, and the working directory.
    """
    found: list[str] = []
    for mount in spec.get("mounts") or ():
        place = _place(mount["destination"])
        if not _lies_in(place, found):
            found.append(place)
    cwd = _place(spec["process"].get("cwd") or "/")
    return tuple(found if _lies_in(cwd, found) else [*found, cwd])


def _place(path: str) -> str:
    return posixpath.normpath(posixpath.join("/", path))


def _lies_in(place: str, others: Sequence[str]) -> bool:
    return any(place == other or place.startswith(f"{other.rstrip('/')}/") for other in others)
