"""Namespaces that the containers of one sandbox share: IPC and UTS always, PID when the sandbox asks for it.

A namespace lives as long as a file is bound to it, so it needs no process of its own.
"""

import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Final

from kata_agent.errors import SetupError
from kata_agent.process.reaper import Child, Reaper
from kata_common import linux
from kata_common.linux import MountFlag
from kata_common.threads import in_thread
from kata_telemetry.span import Site

__all__ = ["SharedNamespaces"]

_trace = Site(package="container", subsystem="namespace")

# As PID 1 it inherits orphans; a process that ignores SIGCHLD leaves no zombies (wait(2)).
HOLDER: Final = ("sh", "-c", "trap '' CHLD; exec sleep 2147483647")


class SharedNamespaces:
    """`paths` maps an OCI namespace type to the file that containers join by."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.paths: dict[str, str] = {}
        self.pid_shared = False
        self._holder: Child | None = None

    async def setup(self, hostname: str, domainname: str, *, share_pid: bool) -> None:
        """Make IPC and UTS namespaces. Raises SetupError."""
        self.pid_shared = share_pid
        with _trace.stage("setup_shared_namespaces", pid=share_pid):
            try:
                # In a thread that ends afterwards: it is in namespaces that are not the agent's.
                await in_thread("namespaces", partial(self._make, hostname, domainname))
            except OSError as error:
                raise SetupError(f"can't make the sandbox's shared namespaces: {error}") from error

    def _make(self, hostname: str, domainname: str) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _trace.span("unshare"):
            linux.unshare(linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
            if hostname:
                socket.sethostname(hostname)
            if domainname:
                linux.set_domainname(domainname)
        for kind in ("ipc", "uts"):
            self._bind(kind, f"/proc/thread-self/ns/{kind}")

    def _bind(self, kind: str, source: str) -> None:
        target = self._directory / kind
        with _trace.detail("bind_namespace", kind_of=kind):
            target.touch()
            linux.mount(source, str(target), "", MountFlag.BIND)
        self.paths[kind] = str(target)

    def adopt_pid(self, pid: int) -> None:
        """Make the PID namespace of `pid` (the first container's init) the sandbox's. Raises SetupError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._bind("pid", f"/proc/{pid}/ns/pid")
        except OSError as error:
            raise SetupError(f"can't share the PID namespace of process {pid}: {error}") from error

    async def hold_pid(self, reaper: Reaper) -> None:
        """Make a PID namespace whose first process is nobody's, so that it ends with the sandbox. Raises SetupError."""
        try:
            with _trace.span("hold_pid_namespace"):
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                try:
                    unshare = partial(linux.unshare, linux.CLONE_NEWPID)
                    self._holder = await reaper.spawn_after(unshare, HOLDER, stdio=(null, null, null))
                finally:
                    os.close(null)
        except OSError as error:
            raise SetupError(f"can't make the sandbox's PID namespace: {error}") from error
        self.adopt_pid(self._holder.pid)

    def close(self) -> None:
        """Let go of all; a namespace ends with its last process."""
        if self._holder is not None:
            self._holder.signal(SIGKILL)
        for path in self.paths.values():
            with suppress(OSError):
                linux.umount(path)
        self.paths.clear()
