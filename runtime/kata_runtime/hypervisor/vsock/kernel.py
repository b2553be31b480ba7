"""The kernel's vhost-vsock: a context id for a VM, without a race.

Number of the ioctl: Linux, include/uapi/linux/vhost.h (VHOST_VSOCK_SET_GUEST_CID). Setting an id that another open file
of /dev/vhost-vsock has fails with EADDRINUSE (drivers/vhost/vsock.c), so the kernel is the judge of what is free.
"""

import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable
from pathlib import Path

from kata_runtime.errors import HostError

__all__ = ["available", "reserve_cid", "set_guest_cid"]

_DEVICE = Path("/dev/vhost-vsock")
# _IOW(0xAF, 0x60, __u64)
_SET_GUEST_CID = 0x4008_AF60
# 0 to 2 and 2^32 - 1 are nobody's (linux/vm_sockets.h).
_FIRST_CID = 3
_LAST_CID = 0xFFFF_FFFE
_TRIES = 64


def available(device: Path = _DEVICE) -> bool:
    """Whether this host's kernel can do vsock for VMs."""
    return device.is_char_device()


def reserve_cid(device: Path = _DEVICE, *, set_cid: Callable[[int, int], None] | None = None) -> tuple[int, int]:
    """A context id that is now ours, and the file descriptor that it belongs to.

    QEMU gets both (`-device vhost-vsock-pci,guest-cid=…,vhostfd=…`); the id is free again when all copies of the fd are
    closed. `set_cid(fd, cid)` does the ioctl, for tests.

    Raises:
        HostError: the device can't be used, or has no free id.
    """
    set_cid = set_cid or set_guest_cid
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{device} can't be opened: {error.strerror}", hint="modprobe vhost_vsock, as root") from error
    try:
        for _ in range(_TRIES):
            # Random, as in Kata: two runtimes that count up together would meet at every step.
            cid = _FIRST_CID + secrets.randbelow(_LAST_CID - _FIRST_CID + 1)
            try:
                set_cid(fd, cid)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise HostError(f"{device} refuses context id {cid}: {error.strerror}") from error
            return cid, fd
        raise HostError(f"{device} has no free context id: {_TRIES} random ones were all taken")
    except BaseException:
        os.close(fd)
        raise


def set_guest_cid(fd: int, cid: int) -> None:
    """Give an open file of /dev/vhost-vsock a context id; OSError where another one has it (EADDRINUSE)."""
    fcntl.ioctl(fd, _SET_GUEST_CID, struct.pack("=Q", cid))
