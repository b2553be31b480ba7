"""A split virtqueue, from the device's side.

Layout and rules: virtio 1.2, chapter 2.7 ("Split Virtqueues"). Neither VIRTIO_F_INDIRECT_DESC nor VIRTIO_F_EVENT_IDX
is offered: they made no difference that could be measured, and what is not offered can't be abused.

Buffers are used in the order in which they were made available, each before the next is looked at, so one index says
all about a ring's progress. The order of our stores is x86's (stores are seen in the order in which they are made);
`__main__` refuses other machines.
"""

import struct
from _thread import allocate_lock
from typing import Final

from kata_runtime.hypervisor.vsock.device.memory import BadAddressError, GuestMemory

_DESCRIPTOR: Final = struct.Struct("<QIHH")  # address, length, flags, next
_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4

_NO_INTERRUPT: Final = 1  # flag of the available ring
_NO_NOTIFY: Final = 1  # flag of the used ring

# VIRTQUEUE_MAX_SIZE in QEMU and UIO_MAXIOV in Linux.
MAX_CHAIN: Final = 1024
# Virtio's limit for the size of a queue.
MAX_SIZE: Final = 32768

_barrier_lock = allocate_lock()


def _barrier() -> None:
    # A store must be visible before the load that follows. Taking a lock is a locked instruction, which is that on x86.
    with _barrier_lock:
        pass


class RingError(Exception):
    """The guest broke virtio's rules: the device stops until its driver resets it."""


class Ring:
    """One queue that runs. `writable` says whether its buffers are for the device to write (RX) or to read (TX).

    `addresses` are QEMU's addresses of descriptor table, available ring and used ring; `base` the index from which on
    buffers are to be used. Raises RingError where they are not in guest RAM.
    """

    __slots__ = ("_addresses", "_avail", "_desc", "_direction", "_guest", "_memory", "_size", "_unsignalled",
                 "_used", "_used_elements", "next")  # fmt: skip

    def __init__(
        self, memory: GuestMemory, size: int, addresses: tuple[int, int, int], base: int, *, writable: bool
    ) -> None:
        self._size = size
        self._addresses = addresses
        self._direction = _WRITE if writable else 0
        self._unsignalled = False
        self.next = base
        self.bind(memory)
        if self._used[1] != base:
            raise RingError(
                f"a queue is to start at index {base}, its used ring says {self._used[1]}: either the guest wrote "
                "there, or this process does not see the guest's RAM (QEMU's memory backend must have share=on)"
            )

    def bind(self, memory: GuestMemory) -> None:
        """Go on in a new mapping of the guest's RAM."""
        descriptors, available, used = self._addresses
        size = self._size
        try:
            self._desc = memory.at_user(descriptors, 16 * size)
            self._avail = memory.at_user(available, 4 + 2 * size).cast("H")
            self._used = memory.at_user(used, 4).cast("H")
            self._used_elements = memory.at_user(used + 4, 8 * size).cast("I")
        except BadAddressError as error:
            raise RingError(str(error)) from None
        self._memory = memory
        self._guest = memory.by_guest

    def release(self) -> None:
        """Let go of the guest's RAM; the ring can't be used afterwards."""
        for view in (self._desc, self._avail, self._used, self._used_elements):
            view.release()

    def peek(self) -> tuple[int, list[memoryview]] | None:
        """The next buffer, or None: its head, for `commit`, and its bytes in pieces. Raises RingError."""
        position = self.next
        size = self._size
        available = self._avail
        pending = (available[1] - position) & 0xFFFF
        if not pending:
            return None
        if pending > size:
            raise RingError(f"available index ran away: {pending} buffers in a queue of {size}")
        head = index = available[2 + position % size]
        pieces: list[memoryview] = []
        for _ in range(min(size, MAX_CHAIN)):
            if index >= size:
                raise RingError(f"descriptor {index} in a queue of {size}")
            # Read once: the guest may change it while we look.
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._desc, 16 * index)
            if flags & (_WRITE | _INDIRECT) != self._direction:
                raise RingError(
                    f"descriptor {index} has flags {flags:#x}: wrong direction, or indirect without the feature"
                )
            for start, end, view in self._guest:
                if start <= address and address + length <= end:
                    address -= start
                    pieces.append(view[address : address + length])
                    break
            else:
                self._add_pieces(pieces, address, length)
            if not flags & _NEXT:
                return head, pieces
            index = following
        raise RingError("a chain of descriptors loops or is too long")

    def _add_pieces(self, pieces: list[memoryview], address: int, length: int) -> None:
        if not length:
            raise RingError("descriptor of no bytes")
        try:
            pieces += self._memory.at_guest(address, length)
        except BadAddressError as error:
            raise RingError(str(error)) from None

    def commit(self, head: int, written: int) -> None:
        """Give the buffer that `peek` showed back to the guest, with `written` bytes in it."""
        slot = 2 * (self.next % self._size)
        elements = self._used_elements
        elements[slot] = head
        elements[slot + 1] = written
        self.next = self._used[1] = (self.next + 1) & 0xFFFF
        self._unsignalled = True

    def ever_used(self) -> bool:
        """Whether the guest has made a buffer available since the queue was new."""
        return bool(self.next or self._avail[1])

    def take_signal(self) -> bool:
        """Whether the guest has to be interrupted for what was committed since the last call."""
        if not self._unsignalled:
            return False
        self._unsignalled = False
        _barrier()
        return not self._avail[0] & _NO_INTERRUPT

    def suppress_kicks(self) -> None:
        """Tell the guest that we look by ourselves."""
        self._used[0] = _NO_NOTIFY

    def allow_kicks(self) -> bool:
        """Ask for kicks again; True where a buffer came meanwhile, for which there may be none."""
        self._used[0] = 0
        _barrier()
        return self._avail[1] != self.next


def scatter(pieces: list[memoryview], data: bytes | memoryview) -> None:
    """Copy a header to the start of a buffer. Raises RingError where it is too small."""
    first = pieces[0]
    if len(first) >= len(data):
        first[: len(data)] = data
        return
    for piece in pieces:
        step = min(len(piece), len(data))
        piece[:step] = data[:step]
        data = data[step:]
    if data:
        raise RingError("RX buffer shorter than a packet's header")


def cut(pieces: list[memoryview], start: int, end: int) -> list[memoryview]:
    """The bytes from `start` to `end` (exclusive) of a buffer in pieces, as far as there are any."""
    result = []
    for piece in pieces:
        size = len(piece)
        if start < size and end > 0:
            result.append(piece[max(start, 0) : min(end, size)])
        start -= size
        end -= size
    return result
