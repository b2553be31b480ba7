"""Root filesystems of containers, as the guest gets to see them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.errors import RootfsError
from kata_runtime.mount import Mount, bind, mounted, overlay
from kata_runtime.oci.spec import HostMount
from kata_runtime.sandbox.state import SandboxDirectory
from kata_telemetry.span import Site

__all__ = ["GUEST_SHARED", "Rootfs", "guest_mounts", "guest_rootfs", "share_rootfs"]

_trace = Site(package="virtcontainers", subsystem="mount")

# Where the agent mounts the shared directory (Kata's path).
GUEST_SHARED = "/run/kata-containers/shared/containers"


@dataclass(frozen=True)
class Rootfs:
    """A root filesystem on the host. With `ephemeral` the container's changes go to a layer that is thrown away.

    `layers` are to be mounted at `path` first. `mounts` are further files and directories of the host that the
    container mounts. `share` names its directory among what the guest sees (by default the container's id).
    """

    path: Path
    ephemeral: bool = False
    readonly: bool = False
    mounts: tuple[HostMount, ...] = ()
    layers: tuple[Mount, ...] = ()
    share: str = ""

    def check(self) -> None:
        """Refuse what can't be a root filesystem.

        Raises:
            RootfsError: not a directory, or not there.
        """
        if not self.path.exists():
            raise RootfsError(f"{self.path}: there is no such root filesystem")
        if not self.path.is_dir():
            raise RootfsError(f"{self.path} is not a directory", hint="for an archive or OCI layout use --image")


def guest_rootfs(share: str) -> str:
    """Path in the guest of a container's root filesystem; `share` is the container's id or `Rootfs.share`."""
    return f"{GUEST_SHARED}/{share}/rootfs"


def guest_mounts(share: str) -> str:
    """Directory in the guest that holds what a container mounts of the host, each under its name."""
    return f"{GUEST_SHARED}/{share}/mounts"


@contextmanager
def share_rootfs(directory: SandboxDirectory, container_id: str, rootfs: Rootfs) -> Iterator[None]:
    """Show a root filesystem to the guest for the block."""
    rootfs.check()
    home = directory.shared / (rootfs.share or container_id)
    point = home / "rootfs"
    with ExitStack() as stack:
        with _trace.stage("bindMountContainerRootfs", container_id=container_id, ephemeral=rootfs.ephemeral):
            for path in (home, point):
                path.mkdir()
                stack.callback(path.rmdir)
            if rootfs.layers:
                with _trace.detail("mountRootfs", container_id=container_id, type=rootfs.layers[-1].kind):
                    stack.enter_context(mounted(rootfs.layers, rootfs.path))
            with _trace.detail("shareRootfs", container_id=container_id):
                stack.enter_context(_mounted(directory, container_id, rootfs, point))
            if rootfs.mounts:
                _share_mounts(stack, home / "mounts", rootfs.mounts)
        try:
            yield
        finally:
            with _trace.span("bindUnmountContainerRootfs", container_id=container_id):
                stack.close()


def _share_mounts(stack: ExitStack, home: Path, mounts: Sequence[HostMount]) -> None:
    home.mkdir()
    stack.callback(home.rmdir)
    for mount in mounts:
        source, point = Path(mount.source), home / mount.name
        if source.is_dir():
            point.mkdir()
            stack.callback(point.rmdir)
        elif source.exists():
            point.touch()
            stack.callback(point.unlink)
        else:
            raise RootfsError(f"the container mounts {source}, which is not there", hint="see the bundle's mounts")
        stack.enter_context(bind(source, point, readonly=mount.readonly))


def _mounted(
    directory: SandboxDirectory, container_id: str, rootfs: Rootfs, point: Path
) -> AbstractContextManager[Path]:
    if not rootfs.ephemeral:
        return bind(rootfs.path, point, readonly=rootfs.readonly)
    upper, work = (directory.layers / container_id / name for name in ("upper", "work"))
    for path in (upper, work):
        path.mkdir(parents=True)
    # The upper directory's own attributes become those of the container's root.
    upper.chmod(rootfs.path.stat().st_mode & 0o7777)
    return overlay(rootfs.path, upper, work, point)
