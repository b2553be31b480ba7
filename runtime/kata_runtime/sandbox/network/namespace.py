"""A network namespace, held open by a file descriptor, and work that is done inside of it.

A namespace belongs to a thread, so each piece of work gets a thread of its own, which ends with it.
"""

import asyncio
import contextvars
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from kata_common import linux
from kata_runtime.errors import HostError, SandboxError

__all__ = ["Namespace"]

T = TypeVar("T")

# linux/nsfs.h
_NS_GET_NSTYPE = 0xB703


class Namespace:
    """A context manager. `path` is where it was found; empty for one that is ours, which ends with its last user."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @classmethod
    def at(cls, path: str) -> "Namespace":
        """The one that `path` names.

        Raises:
            SandboxError: there is none, or it is the host's.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxError(
                f"the sandbox's network namespace can't be opened: {path}: {error.strerror}",
                hint="it is made before the container, by CNI or `ip netns add`, and must last as long",
            ) from error
        try:
            if _kind(fd) != linux.CLONE_NEWNET:
                raise SandboxError(f"{path} is not a network namespace", hint="as /run/netns/NAME or /proc/PID/ns/net")
            mine = os.fstat(fd)
            for host in ("/proc/1/ns/net", "/proc/self/ns/net"):
                with suppress(OSError):
                    if os.path.samestat(mine, os.stat(host)):  # noqa: PTH116 - of a link that is none
                        raise SandboxError(
                            f"{path} is the host's network namespace: a VM can't share the host's network",
                            hint="run the container without host network (ctr: without --net-host; "
                            "Kubernetes: hostNetwork: false)",
                        )
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path)

    @classmethod
    def made(cls) -> "Namespace":
        """A new one, which nothing names: no path has to be removed afterwards.

        Raises:
            HostError: the kernel makes none.
        """
        try:
            return cls(_in_thread(_make), "")
        except OSError as error:
            raise HostError(
                f"no network namespace can be made: {error.strerror}", hint="see /proc/sys/user/max_net_namespaces"
            ) from error

    def run_now(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, done inside of the namespace; blocks meanwhile."""

        def inside() -> T:
            linux.setns(self.fd, linux.CLONE_NEWNET)
            return work()

        return _in_thread(inside)

    async def run(self, work: Callable[[], T]) -> T:
        """The same without blocking the loop. Cancelled, it first waits for the end of `work`."""
        loop = asyncio.get_running_loop()
        done = asyncio.ensure_future(loop.run_in_executor(None, contextvars.copy_context().run, self.run_now, work))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            while not done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({done})
            done.exception()  # it has been seen
            raise


def _kind(fd: int) -> int:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:  # no namespace at all
        return 0


def _make() -> int:
    linux.unshare(linux.CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(work: Callable[[], T]) -> T:
    result: list[T] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()  # the current span

    def body() -> None:
        try:
            result.append(context.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]
