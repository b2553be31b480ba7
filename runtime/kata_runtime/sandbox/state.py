"""Where one sandbox keeps its things on the host, and how leftovers of killed runtimes go away.

    /run/kata/<id>/              sockets, logs; a lock says that the sandbox lives
    /run/kata/<id>/mounts/       what is mounted for containers: <container>/rootfs, <container>/mounts/<name>
    /run/kata/<id>/shared/       the same, read-only but for what is a container's to write: what virtiofsd shares
    /var/lib/kata-containers/sandboxes/<id>/   writable layers of container root filesystems

Nothing here is ever removed recursively through a mount: a root filesystem of the user's may be mounted below.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_common import places
from kata_common.ids import RULE, is_id
from kata_runtime.errors import HostError, RootfsError, SandboxError
from kata_runtime.mount_tree import unmount_below
from kata_telemetry.span import Site

__all__ = ["Directories", "SandboxDirectory", "valid_id"]

_trace = Site(package="virtcontainers", subsystem="sandbox")

# Seconds that an empty directory is left alone.
_BEGINNING = 60.0


def valid_id(text: str) -> str:
    """The id itself.

    Raises:
        SandboxError: it could not be a name of a directory.
    """
    if not is_id(text):
        raise SandboxError(f"{text[:100]!r} can't be the name of a sandbox or container", hint=RULE)
    return text


@dataclass(frozen=True)
class Directories:
    """The roots of all sandboxes of this host."""

    run: Path = Path(places.RUN_DIR)
    layers: Path = Path(places.LAYERS_DIR)

    def sweep(self) -> list[str]:
        """Remove what sandboxes left whose runtime was killed; their ids."""
        gone = []
        names = {entry.name for root in (self.run, self.layers) if root.is_dir() for entry in root.iterdir()}
        for name in sorted(names):
            if not is_id(name):
                continue
            directory = SandboxDirectory(self, name)
            if directory.begins:
                continue
            try:
                with directory.locked():
                    directory.close_trace()
                    directory.remove()
                    gone.append(name)
            except SandboxError:
                continue  # it lives
        return gone


@dataclass(frozen=True)
class SandboxDirectory:
    """The directories of one sandbox."""

    roots: Directories
    sandbox_id: str

    @property
    def run(self) -> Path:
        """Sockets and logs."""
        return self.roots.run / self.sandbox_id

    @property
    def mounts(self) -> Path:
        """Where mounts for the guest are made; the guest never sees this directory, only what is mounted in it."""
        return self.run / "mounts"

    @property
    def shared(self) -> Path:
        """What the guest sees by virtio-fs: `mounts`, by propagation."""
        return self.run / "shared"

    @property
    def network(self) -> Path:
        """What has to be undone in the pod's network namespace, see `Network`."""
        return self.run / "network.json"

    @property
    def cgroups(self) -> Path:
        """Which cgroups of the host are the sandbox's, see `placement`."""
        return self.run / "cgroups.json"

    @property
    def layers(self) -> Path:
        """Writable layers."""
        return self.roots.layers / self.sandbox_id

    @property
    def begins(self) -> bool:
        """Whether somebody may have made it just now and not have taken its lock yet."""
        try:
            return not any(self.run.iterdir()) and time.time() - self.run.stat().st_mtime < _BEGINNING
        except OSError:
            return False

    @contextmanager
    def opened(self) -> Iterator["SandboxDirectory"]:
        """Make the directories for the block, hold their lock, and remove them afterwards.

        Raises:
            SandboxError: a sandbox of this id lives.
            HostError: the directories can't be made.
        """
        with self.locked():
            self._clear()  # of what a killed runtime left
            try:
                for path in (self.mounts, self.shared):
                    path.mkdir(mode=0o755)
                self.layers.mkdir(parents=True, mode=0o700)
            except OSError as error:
                raise HostError(f"{error.filename}: {error.strerror}", hint="is the disk full?") from error
            try:
                yield self
            finally:
                with _trace.span("removeDirectories"):
                    self.remove()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that says that the sandbox lives.

        Raises:
            SandboxError: somebody else holds it.
        """
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self) -> int:
        while True:
            try:
                self.run.mkdir(parents=True, mode=0o700, exist_ok=True)
                fd = os.open(self.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # its last holder removed it before our open
            except OSError as error:
                raise HostError(f"{self.run}: {error.strerror}", hint="are you root?") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.run.exists() and self.run.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise SandboxError(
                    f"a sandbox {self.sandbox_id!r} is running", hint="choose another --name, or stop it first"
                ) from None
            os.close(fd)  # its last holder removed it between our open and our lock

    def close_trace(self) -> None:
        """Close the trace of a sandbox whose runtime was killed: what was going on ended with it."""
        try:
            store = Path(os.readlink(self.run / "trace"))  # noqa: PTH115 - see PTH123
        except OSError:
            return
        from kata_traces.store.abandoned import close_abandoned
        from kata_traces.store.store import Store

        close_abandoned(Store(store))

    def remove(self) -> None:
        """Remove the directories; anything still mounted in them is detached first.

        Raises:
            SandboxError: something is mounted there that can't be detached.
        """
        self._clear()
        self.run.rmdir()

    def _clear(self) -> None:
        if self.network.exists():
            from kata_runtime.sandbox.network.network import undo_leftover

            undo_leftover(self.network)
        if self.cgroups.exists():
            from kata_runtime.sandbox.placement import remove_leftover

            remove_leftover(self.cgroups)
        # What is below afterwards is on our own file system: no mount, so nothing of the user's.
        for path in (self.run, self.layers):
            try:
                unmount_below(path)
            except RootfsError as error:
                raise SandboxError(str(error)) from error
        for entry in self.run.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if self.layers.exists():
            shutil.rmtree(self.layers)
