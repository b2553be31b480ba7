"""Swap: disks that the host has given the guest for memory that is rarely used."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kata_agent.errors import InvalidError, NotFoundError, SetupError

__all__ = ["add", "disk_at"]

_DEVICES: Final = Path("/sys/devices")
# mkswap(8)'s signature is the last thing in the first page; of 4096 bytes where QEMU is.
_SIGNATURE: Final = b"SWAPSPACE2"
_PAGE: Final = 4096
MAX_DEPTH: Final = 8


def disk_at(path: Sequence[int], devices: Path = _DEVICES) -> str:
    """The disk at a place on PCI: the slot on the root bus, then that behind the bridge there, and so on.

    Raises InvalidError, NotFoundError.
    """
    if not 1 <= len(path) <= MAX_DEPTH or any(slot > 31 for slot in path):
        raise InvalidError(f"{list(path)[:MAX_DEPTH]} is no path on PCI: 1 to {MAX_DEPTH} slots from 0 to 31")
    here = sorted(devices.glob("pci0000:00"))
    for slot in path:
        here = [found for above in here for found in sorted(above.glob(f"[0-9a-f]*:[0-9a-f]*:{slot:02x}.0"))]
    disks = sorted(name for place in here for name in (*place.glob("virtio*/block/*"), *place.glob("nvme/*/nvme*n*")))
    if not disks:
        raise NotFoundError(f"there is no disk at PCI path {'/'.join(map(str, path))}")
    return f"/dev/{disks[0].name}"


def add(path: str) -> None:
    """Swap to a disk or file from now on. Raises InvalidError, SetupError."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise InvalidError(f"{path[:80]!r} is not an absolute path")
    try:
        with open(path, "rb") as swap:
            signature = swap.read(_PAGE)[-len(_SIGNATURE) :]
    except OSError as error:
        raise SetupError(f"can't swap to {path[:80]}: {error.strerror}") from error
    if signature != _SIGNATURE:
        raise InvalidError(f"can't swap to {path[:80]}: it has no swap signature (mkswap)")
    if ctypes.CDLL(None, use_errno=True).swapon(os.fsencode(path), 0):
        raise SetupError(f"can't swap to {path[:80]}: {os.strerror(ctypes.get_errno())}")
