"""Drives the vsock backend as QEMU and a guest's driver do, without either.

`Frontend` is QEMU's part (the vhost-user messages) and the driver's (two rings in a memfd). Well-behaved by default;
everything can be reached to misbehave.
"""

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.vsock_backend import GUEST_CID, Backend

GUEST_BASE = 0x10_0000  # guest address of the RAM's first byte, and QEMU's
USER_BASE = 0x7F00_0000_0000
RAM_SIZE = 8 << 20
RX_BUFFER, TX_BUFFER = 4096, 65536
_HEADER = struct.Struct("<QQIIIHHIII")
_DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
ROOM = 256 * 1024
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)


class Packet(NamedTuple):
    """A packet that the backend sent."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    kind: int
    op: int
    flags: int
    room: int
    taken: int
    data: bytes


class Queue:
    """One virtqueue, driver side. Offsets are into the RAM."""

    def __init__(self, ram: mmap.mmap, offset: int, size: int) -> None:
        self.ram = ram
        self.size = size
        self.descriptors = offset
        self.available = offset + 16 * size
        self.used = (self.available + 6 + 2 * size + 7) & ~7
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.added = self.seen = 0
        self.free = list(range(size))[::-1]
        self.chains: dict[int, list[int]] = {}
        self.barrier = threading.Lock()

    def reset(self) -> None:
        """As a new driver finds it."""
        end = self.used + 6 + 8 * self.size
        self.ram[self.descriptors : end] = bytes(end - self.descriptors)
        self.added = self.seen = 0
        self.free = list(range(self.size))[::-1]
        self.chains.clear()

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor; `address` is the guest's."""
        _DESCRIPTOR.pack_into(self.ram, self.descriptors + 16 * index, address, length, flags, following)

    def offer(self, head: int, *, publish: bool = True) -> None:
        """Make a chain available."""
        struct.pack_into("<H", self.ram, self.available + 4 + 2 * (self.added % self.size), head)
        self.added = (self.added + 1) & 0xFFFF
        if publish:
            self.publish(self.added)

    def publish(self, index: int) -> None:
        """Set the available index."""
        # By one store: `pack_into` clears its place first, and the device would now and then read an index of 0.
        with memoryview(self.ram) as ram, ram[self.available + 2 :][:2].cast("H") as place:
            place[0] = index

    def add(self, pieces: list[tuple[int, int]], flags: int) -> int:
        """Make a chain of (guest address, length) available; returns its head."""
        chain = [self.free.pop() for _ in pieces]
        for position, (index, (address, length)) in enumerate(zip(chain, pieces, strict=True)):
            more = position + 1 < len(chain)
            self.descriptor(index, address, length, flags | (NEXT if more else 0), chain[position + 1] if more else 0)
        self.chains[chain[0]] = chain
        self.offer(chain[0])
        return chain[0]

    def wants_kick(self) -> bool:
        """Whether the device asked for notifications."""
        return not struct.unpack_from("<H", self.ram, self.used)[0] & 1

    def signal(self, *, force: bool = False) -> None:
        """Kick the device if it wants that."""
        # The device must see the buffer before its wish is read (VIRTIO 1.2, 2.7.13.4.1). A lock is such a barrier.
        with self.barrier:
            pass
        if force or self.wants_kick():
            os.eventfd_write(self.kick, 1)

    def take_used(self) -> tuple[int, int] | None:
        """The next used chain: head and bytes written."""
        (index,) = struct.unpack_from("<H", self.ram, self.used + 2)
        if index == self.seen:
            return None
        head, written = struct.unpack_from("<II", self.ram, self.used + 4 + 8 * (self.seen % self.size))
        self.seen = (self.seen + 1) & 0xFFFF
        self.free += self.chains.pop(head, [])
        return int(head), int(written)

    def wait_used(self, timeout: float) -> tuple[int, int]:
        """The same, when there is one."""
        while (used := self.take_used()) is None:
            if not select.select([self.call], [], [], timeout)[0]:
                raise TimeoutError("the device used no buffer")
            os.eventfd_read(self.call)
        return used

    def close(self) -> None:
        """Give back the eventfds."""
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


class Frontend:
    """QEMU and driver in one. `ram` is the guest's memory."""

    def __init__(self, vhost: socket.socket, *, ring_size: int = 64, timeout: float = 5.0) -> None:
        self.vhost = vhost
        self.timeout = timeout
        vhost.settimeout(timeout)
        self.memfd = os.memfd_create("guest")
        os.ftruncate(self.memfd, RAM_SIZE)
        self.ram = mmap.mmap(self.memfd, RAM_SIZE)
        self.rx = Queue(self.ram, 0x1000, ring_size)
        self.tx = Queue(self.ram, 0x8000, ring_size)
        self.rx_buffers = GUEST_BASE + 0x10_0000
        self.tx_buffers = GUEST_BASE + 0x20_0000

    # vhost-user.

    def send(self, request: int, payload: bytes = b"", fds: list[int] | None = None, *, flags: int = 1) -> None:
        """One message."""
        message = struct.pack("=III", request, flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.vhost.sendmsg([message], rights)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        """One message, and its reply's payload."""
        self.send(request, payload)
        return self.reply(request)

    def reply(self, request: int) -> bytes:
        """The payload of the reply to `request`."""
        header = self._exactly(12)
        got, flags, size = struct.unpack("=III", header)
        assert (got, flags) == (request, 5)
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.vhost.recv(size - len(data))
            if not more:
                raise ConnectionError("the backend hung up")
            data += more
        return data

    def number(self, request: int, value: int) -> None:
        """A message with a u64."""
        self.send(request, struct.pack("=Q", value))

    def state(self, request: int, index: int, value: int) -> None:
        """A message with a ring's state."""
        self.send(request, struct.pack("=II", index, value))

    def handshake(self) -> None:
        """What QEMU says when the device is made."""
        assert struct.unpack("=Q", self.ask(1))[0] == VERSION_1 | PROTOCOL_FEATURES
        (protocol,) = struct.unpack("=Q", self.ask(15))
        self.number(16, protocol)
        self.send(3)
        for index, queue in enumerate((self.rx, self.tx)):
            self.send(13, struct.pack("=Q", index), [queue.call])
            self.send(14, struct.pack("=Q", index), [queue.error])
        config = self.ask(24, struct.pack("=III", 0, 8, 0) + bytes(8))
        assert struct.unpack("=IIIQ", config) == (0, 8, 0, GUEST_CID)

    def memory_table(self) -> None:
        """Share the RAM, and wait for the answer."""
        region = struct.pack("=QQQQ", GUEST_BASE, RAM_SIZE, USER_BASE, 0)
        self.send(5, struct.pack("=II", 1, 0) + region, [self.memfd], flags=1 | 8)
        assert self.reply(5) == bytes(8)

    def addresses(self, index: int, queue: Queue) -> None:
        """Where a ring is."""
        base = USER_BASE
        places = (base + queue.descriptors, base + queue.used, base + queue.available, 0)
        self.send(9, struct.pack("=IIQQQQ", index, 0, *places))

    def start(self, bases: tuple[int, int] = (0, 0)) -> None:
        """What QEMU says when the driver is ready, or the VM goes on."""
        for index, queue in enumerate((self.rx, self.tx)):
            self.send(13, struct.pack("=Q", index), [queue.call])
        self.number(2, VERSION_1 | PROTOCOL_FEATURES)
        self.memory_table()
        for index, queue in enumerate((self.rx, self.tx)):
            self.state(8, index, queue.size)
            self.state(10, index, bases[index])
            self.addresses(index, queue)
            self.send(12, struct.pack("=Q", index), [queue.kick])
        for index in range(2):
            self.state(18, index, 1)
        for index, queue in enumerate((self.rx, self.tx)):
            self.send(13, struct.pack("=Q", index), [queue.call])

    def stop(self) -> tuple[int, int]:
        """What QEMU says for a pause and a reset; returns where the rings stand."""
        for index in range(2):
            self.state(18, index, 0)
        answers = [struct.unpack("=II", self.ask(11, struct.pack("=II", index, 0))) for index in range(2)]
        return answers[0][1], answers[1][1]

    def sync(self) -> None:
        """Until all earlier messages have been dealt with."""
        self.ask(1)

    def boot(self, *, rx_buffers: int = 48) -> None:
        """A new driver: empty rings, RX buffers."""
        self.rx.reset()
        self.tx.reset()
        for _ in range(rx_buffers):
            self.add_rx()
        self.start()
        self.rx.signal(force=True)

    # The driver.

    def add_rx(self, *sizes: int) -> None:
        """One more RX buffer, in pieces of these sizes (by default one)."""
        place, pieces = self.rx_buffers + self.rx.free[-1] * RX_BUFFER, []
        for size in sizes or (RX_BUFFER,):
            pieces.append((place, size))
            place += size
        self.rx.add(pieces, WRITE)

    def receive(self, timeout: float | None = None, *, refill: bool = True) -> Packet:
        """The next packet from the backend."""
        head, written = self.rx.wait_used(self.timeout if timeout is None else timeout)
        start = self.rx_buffers - GUEST_BASE + head * RX_BUFFER
        raw = self.ram[start : start + written]
        fields = _HEADER.unpack_from(raw)
        packet = Packet._make((*fields, raw[_HEADER.size :]))
        assert packet.length == len(packet.data)
        if refill:
            self.add_rx()
            self.rx.signal()
        return packet

    def expect(self, op: int, host_port: int | None = None) -> Packet:
        """The next packet, which must be this one."""
        packet = self.receive()
        assert packet.op == op, packet
        assert host_port is None or packet.src_port == host_port, packet
        return packet

    def silent(self, timeout: float = 0.05) -> bool:
        """Whether the backend says nothing for a while."""
        try:
            packet = self.receive(timeout)
        except TimeoutError:
            return True
        raise AssertionError(packet)

    def packet(
        self,
        op: int,
        guest_port: int,
        host_port: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        room: int = ROOM,
        taken: int = 0,
        src_cid: int = GUEST_CID,
        dst_cid: int = 2,
        kind: int = 1,
        length: int | None = None,
        cut: tuple[int, ...] = (44,),
        kick: bool = True,
    ) -> None:
        """Send a packet, in pieces that end at `cut`; waits for room in the ring."""
        size = len(data) if length is None else length
        header = _HEADER.pack(src_cid, dst_cid, guest_port, host_port, size, kind, op, flags, room, taken)
        self.raw(header + data, cut, kick=kick)

    def raw(self, content: bytes, cut: tuple[int, ...] = (), *, kick: bool = True) -> None:
        """Send any bytes as a packet."""
        ends = [end for end in cut if end < len(content)] + [len(content)]
        while self.tx.take_used():
            pass
        while len(self.tx.free) < len(ends):
            self.tx.signal()
            self.tx.wait_used(self.timeout)
        # A chain's bytes lie in the buffer of its head (one of 64, so that all fit).
        place = self.tx_buffers + self.tx.free[-1] % 64 * TX_BUFFER
        offset = place - GUEST_BASE
        self.ram[offset : offset + len(content)] = content
        starts = [0, *ends[:-1]]
        self.tx.add([(place + start, end - start) for start, end in zip(starts, ends, strict=True)], 0)
        if kick:
            self.tx.signal()

    def accept(self, guest_port: int) -> int:
        """Take a connection that the host makes; returns the host's port."""
        request = self.expect(REQUEST)
        assert (request.src_cid, request.dst_cid, request.dst_port) == (2, GUEST_CID, guest_port)
        self.packet(RESPONSE, guest_port, request.src_port)
        return request.src_port

    def close(self) -> None:
        """Hang up."""
        self.vhost.close()
        self.rx.close()
        self.tx.close()
        self.ram.close()
        os.close(self.memfd)


@contextlib.contextmanager
def booted(directory: Path, *forwards: int) -> Iterator[tuple[Backend, Frontend]]:
    """A backend with these ports, and a guest that has booted; when the guest goes, the backend must end well."""
    with Backend(directory, forwards=forwards, unprivileged=False) as backend:
        frontend = Frontend(backend.vhost)
        frontend.handshake()
        frontend.boot()
        frontend.sync()
        yield backend, frontend
        frontend.close()
        assert backend.wait() == 0
