"""An empty root for a process that opens all its files while it starts, and is given the others as descriptors.

It needs none of its libraries, images and devices by a name any more, so nothing has to be collected for it, wherever
it lies. It must not have heard of whom it is kept from before that (docs/decisions/0063).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kata_common import linux
from kata_common.linux import MountFlag
from kata_common.threads import in_thread
from kata_runtime.errors import HostError

__all__ = ["Root"]

# There is no host without, and nobody in that namespace needs it.
_PLACE = "/proc"
_EMPTY = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC


class Root:
    """A mount namespace that is a copy of ours until `empty`."""

    def __init__(self, fd: int) -> None:
        """`path` leads to it; nobody has to inherit its descriptor."""
        self._fd = fd
        self.path = f"/proc/{os.getpid()}/fd/{fd}"

    @classmethod
    @asynccontextmanager
    async def made(cls) -> AsyncIterator["Root"]:
        """A new one. After the block it lasts as long as a process is in it.

        Raises:
            HostError: the kernel makes none.
        """
        try:
            fd = await in_thread("mounts", _make)
        except OSError as error:
            hint = "are you root? see /proc/sys/user/max_mnt_namespaces"
            raise HostError(f"a mount namespace can't be made: {error.strerror}", hint=hint) from error
        try:
            yield cls(fd)
        finally:
            os.close(fd)

    async def empty(self) -> None:
        """Take all mounts away from those in it, and let their root and working directory be an empty one.

        Raises:
            HostError: it can't be done.
        """
        try:
            await in_thread("root", self._empty)
        except OSError as error:
            raise HostError(
                f"the VM's process can't be given an empty root: {error.strerror}",
                hint="pivot_root(2) takes no root that is the initramfs, nor one of chroot's, as with runc",
            ) from error

    def _empty(self) -> None:
        # A thread has its working directory, and so its namespace, alone after the first call; it ends with this.
        linux.unshare(linux.CLONE_FS)
        linux.setns(self._fd, linux.CLONE_NEWNS)
        linux.mount("root", _PLACE, "tmpfs", _EMPTY, "size=4k,nr_inodes=1,mode=555")
        os.chdir(_PLACE)
        linux.pivot_root(".", ".")
        linux.umount(".")


def _make() -> int:
    linux.unshare(linux.CLONE_FS | linux.CLONE_NEWNS)
    # What is mounted here later is nothing for whoever is in it.
    linux.mount("none", "/", "", MountFlag.REC | MountFlag.PRIVATE)
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
