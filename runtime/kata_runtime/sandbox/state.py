"""Where one sandbox keeps its things on the host, and how leftovers of killed runtimes go away.

    /run/kata/<id>/              sockets, logs; a lock says that the sandbox lives
    /run/kata/<id>/mounts/       what is mounted for containers: <container>/rootfs, ~volumes/<number>, which
                                 symlinks <container>/mounts/<name> lead to (in the guest)
    /run/kata/<id>/shared/       the same, read-only but for what is a container's to write: what virtiofsd shares
    /var/lib/kata-containers/sandboxes/<id>/   writable layers of container root filesystems

Nothing here is ever removed recursively through a mount: a root filesystem of the user's may be mounted below.
"""

import asyncio
import errno
import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kata_common import places
from kata_common.ids import RULE, is_id
from kata_common.removal import Leftovers, remove_tree
from kata_common.threads import in_thread
from kata_runtime.errors import HostError, RootfsError, SandboxError
from kata_runtime.hypervisor.users import Users
from kata_runtime.mount_tree import unmount_below
from kata_runtime.sandbox.volumes import Volumes
from kata_telemetry.span import Site

__all__ = ["Directories", "SandboxDirectory", "valid_id"]

_trace = Site(package="virtcontainers", subsystem="sandbox")
_log = logging.getLogger("kata.sandbox")

# Seconds that an empty directory is left alone.
_BEGINNING = 60.0
# Seconds of a run's start that go into the removal of what others left; what takes longer is gone after some runs.
_SWEEPING = 0.5


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
        """Remove what sandboxes left whose runtime was killed; the ids of those that are gone.

        Whatever is wrong with one of them is told in the log and nobody else's trouble.
        """
        gone = []
        until = time.monotonic() + _SWEEPING
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
                    if left := directory.remove(until=until):
                        _log.info("what sandbox %s left can't be removed: %s", name, left)
                    else:
                        gone.append(name)
            except SandboxError:
                continue  # it lives
            except Exception as error:
                _log.info("what sandbox %s left can't be removed: %s", name, error)
        self.sweep_users()
        return gone

    def sweep_users(self) -> None:
        """Remove the files of users that only killed runtimes had."""
        Users(self.run).sweep()


@dataclass(frozen=True)
class SandboxDirectory:
    """The directories of one sandbox."""

    roots: Directories
    sandbox_id: str
    volumes: Volumes = field(default_factory=Volumes, compare=False, repr=False)
    _shares: Counter[str] = field(default_factory=Counter, compare=False, repr=False)

    def share_name(self, container_id: str) -> str:
        """A name for a container's directory among what the guest sees: another for each container of this id.

        The guest remembers names for a second. If one meant something else by then, it would take the mounts away that
        crun has just made there.
        """
        self._shares[container_id] += 1
        number = self._shares[container_id]
        # No id has a tilde.
        return container_id if number == 1 else f"{container_id}~{number}"

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

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["SandboxDirectory"]:
        """Make the directories for the block, hold their lock, and remove them afterwards.

        What can't be removed then is told in one line of the log.

        Raises:
            SandboxError: a sandbox of this id lives, or one left what can't be removed.
            HostError: the directories can't be made.
        """
        with self.locked():
            try:
                left = await _aside(self._clear)  # of what a killed runtime left
            except asyncio.CancelledError:
                self.remove()  # no more than the lock's
                raise
            if left:
                raise SandboxError(
                    f"what an earlier sandbox {self.sandbox_id} left can't be removed: {left}",
                    hint="remove it, or choose another --name",
                )
            try:
                for path in (self.mounts, self.shared):
                    path.mkdir(mode=0o755)
                self.layers.mkdir(parents=True, mode=0o700)
            except OSError as error:
                await _aside(self.remove)
                raise HostError(f"{error.filename}: {error.strerror}", hint="is the disk full?") from error
            try:
                yield self
            finally:
                with _trace.span("removeDirectories"):
                    if left := await _aside(self.remove):
                        _log.warning("what sandbox %s leaves can't be removed: %s", self.sandbox_id, left)

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
                hint = "are you root?" if error.errno in (errno.EACCES, errno.EPERM) else "is the disk full?"
                raise HostError(f"{self.run}: {error.strerror}", hint=hint) from error
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

    def remove(self, *, until: float = float("inf")) -> Leftovers:
        """Remove the directories; anything still mounted in them is detached first. What could not be removed.

        After `until` (monotonic, s) the rest is left for another time.

        Raises:
            SandboxError: something is mounted there that can't be detached.
        """
        left = self._clear(until)
        if not left:
            with suppress(FileNotFoundError):
                self.run.rmdir()
        return left

    def _clear(self, until: float = float("inf")) -> Leftovers:
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
        over = Leftovers()
        for entry in (*self.run.iterdir(), self.layers):
            over.take(remove_tree(entry, until=until))
        return over


async def _aside(work: Callable[[], Leftovers]) -> Leftovers:
    """In a thread, because a workload's files may be many; to its end, because the lock has to be held meanwhile."""
    working = asyncio.ensure_future(in_thread("directories", work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await working
        raise
