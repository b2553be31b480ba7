"""Root filesystems of containers, as the guest gets to see them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.errors import RootfsError
from kata_runtime.mount import bind, overlay
from kata_runtime.sandbox.state import SandboxDirectory
from kata_telemetry.span import Site

__all__ = ["GUEST_SHARED", "Rootfs", "guest_path", "share_rootfs"]

_trace = Site(package="virtcontainers", subsystem="mount")

# Where the agent mounts the shared directory (Kata's path).
GUEST_SHARED = "/run/kata-containers/shared/containers"


@dataclass(frozen=True)
class Rootfs:
    """A root filesystem on the host. With `ephemeral` the container's changes go to a layer that is thrown away."""

    path: Path
    ephemeral: bool = False
    readonly: bool = False

    def check(self) -> None:
        """Refuse what can't be a root filesystem.

        Raises:
            RootfsError: not a directory, or not there.
        """
        if not self.path.exists():
            raise RootfsError(f"{self.path}: there is no such root filesystem")
        if not self.path.is_dir():
            raise RootfsError(f"{self.path} is not a directory", hint="for an archive or OCI layout use --image")


def guest_path(container_id: str) -> str:
    """Path of a container's root filesystem in the guest."""
    return f"{GUEST_SHARED}/{container_id}/rootfs"


@contextmanager
def share_rootfs(directory: SandboxDirectory, container_id: str, rootfs: Rootfs) -> Iterator[None]:
    """Show a root filesystem to the guest for the block."""
    rootfs.check()
    point = directory.shared / container_id / "rootfs"
    with ExitStack() as stack:
        with _trace.span("bindMountContainerRootfs", container_id=container_id, ephemeral=rootfs.ephemeral):
            for path in (point.parent, point):
                path.mkdir()
                stack.callback(path.rmdir)
            stack.enter_context(_mounted(directory, container_id, rootfs, point))
        yield


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
