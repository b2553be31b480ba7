"""A network namespace of a test's own, with nothing but loopback in it."""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["NetworkNamespace", "new_namespace"]

_T = TypeVar("_T")
_CLONE_NEWNET = 0x4000_0000  # linux/sched.h


@dataclass(frozen=True)
class NetworkNamespace:
    """`path` names it."""

    path: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """What runs a command in it. Not `ip netns exec`, which would hide the command's mounts from the host."""
        return ("nsenter", f"--net={self.path}", "--")

    def ip(self, *arguments: str) -> None:
        """Run `ip` in it."""
        subprocess.run(["ip", "-n", self.path.name, *arguments], check=True)

    def run(self, work: Callable[[], _T]) -> _T:
        """Do something in it, in a thread of its own; sockets made there stay in it."""
        done: list[_T] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                with self.path.open() as file:
                    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.path}")
                done.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    def connect(self, host: str, port: int, timeout: float = 60) -> socket.socket:
        """A TCP connection that begins in it."""
        return self.run(lambda: socket.create_connection((host, port), timeout))


@contextmanager
def new_namespace() -> Iterator[NetworkNamespace]:
    """A namespace for the block, with loopback up."""
    name = f"kata-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        namespace = NetworkNamespace(Path("/run/netns") / name)
        namespace.ip("link", "set", "lo", "up")
        yield namespace
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
