"""The guest's RAM, as QEMU shares it.

A region of vhost-user's memory table (QEMU, docs/interop/vhost-user.rst, "Memory regions description") has two
addresses: descriptors in the rings use the guest's, the rings themselves are told by QEMU's own.
"""

import contextlib
import mmap
import os
from typing import NamedTuple

from kata_runtime.hypervisor.vsock.device.message import FrontendError


class BadAddressError(Exception):
    """An address range that is not in the guest's RAM."""


class Region(NamedTuple):
    """One entry of the memory table; sizes in bytes."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


class GuestMemory:
    """The mapped memory table. Views into it are valid until `close`.

    `by_guest` is (first address, address after the last, bytes) for each region, for callers in a hurry.
    """

    __slots__ = ("_by_user", "_maps", "_views", "by_guest")

    def __init__(self) -> None:
        self.by_guest: list[tuple[int, int, memoryview]] = []
        self._by_user: list[tuple[int, int, memoryview]] = []
        self._maps: list[mmap.mmap] = []
        self._views: list[memoryview] = []

    @classmethod
    def map(cls, regions: list[Region], fds: list[int]) -> "GuestMemory":
        """Map `regions`, each from its own fd; the fds stay the caller's. Raises FrontendError."""
        memory = cls()
        try:
            for region, fd in zip(regions, fds, strict=True):
                memory._add(region, fd)
        except (OSError, ValueError, OverflowError) as error:
            memory.close()
            raise FrontendError(f"SET_MEM_TABLE: guest RAM can't be mapped: {error}") from error
        return memory

    def _add(self, region: Region, fd: int) -> None:
        # From the file's start, because mmap wants offsets aligned to (possibly huge) pages; address space is cheap.
        length = region.mmap_offset + region.size
        if not region.size or length > os.fstat(fd).st_size:
            raise ValueError(f"region of {region.size} bytes at offset {region.mmap_offset} is not within its file")
        mapped = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._maps.append(mapped)
        whole = memoryview(mapped)
        view = whole[region.mmap_offset : length]
        self._views += [view, whole]
        self.by_guest.append((region.guest_address, region.guest_address + region.size, view))
        self._by_user.append((region.user_address, region.user_address + region.size, view))

    def at_user(self, address: int, length: int) -> memoryview:
        """The bytes at an address of QEMU's. Raises BadAddressError."""
        for start, end, view in self._by_user:
            if start <= address and address + length <= end:
                return view[address - start : address - start + length]
        raise BadAddressError(f"ring of {length} bytes at QEMU's address {address:#x} is not in guest RAM")

    def at_guest(self, address: int, length: int) -> list[memoryview]:
        """The bytes at a guest address, in pieces where neighbouring regions share them. Raises BadAddressError."""
        pieces = []
        while length:
            for start, end, view in self.by_guest:
                if start <= address < end:
                    step = min(length, end - address)
                    pieces.append(view[address - start : address - start + step])
                    address += step
                    length -= step
                    break
            else:
                raise BadAddressError(f"buffer of {length} bytes at {address:#x} is not in guest RAM")
        return pieces

    def close(self) -> None:
        """Unmap."""
        self.by_guest.clear()
        self._by_user.clear()
        for view in self._views:
            view.release()
        self._views.clear()
        for mapped in self._maps:
            # A view that is still somewhere keeps its pages; they go with it.
            with contextlib.suppress(BufferError):
                mapped.close()
        self._maps.clear()
