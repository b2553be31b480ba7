"""What QEMU and the guest's driver say to the vsock backend: messages, rings, packets."""

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_runtime.hypervisor.vsock.device import message as m
from kata_runtime.hypervisor.vsock.device.connection import Connection, Stream
from kata_runtime.hypervisor.vsock.device.device import MAX_ANSWERS, Device
from kata_runtime.hypervisor.vsock.device.frontend import Session
from kata_runtime.hypervisor.vsock.device.memory import GuestMemory, Region
from kata_runtime.hypervisor.vsock.device.message import FrontendError
from kata_runtime.hypervisor.vsock.device.packet import HEADER, HOST_CID, RW, STREAM
from kata_runtime.hypervisor.vsock.device.ring import Ring, RingError
from support.fuzz.target import Target
from support.vsock_frontend import GUEST_BASE, USER_BASE, WRITE, Queue

__all__ = ["TARGETS"]

_CID = 3
_CONNECTIONS = 8
_RAM = 64 << 10


class _Host:
    """What device and session need around them; sockets that the guest reaches take everything."""

    def __init__(self) -> None:
        self.streams: list[socket.socket] = []

    def dial(self, port: int) -> Stream | None:
        if port % 2:
            return None
        ours, theirs = socket.socketpair()
        self.streams += [ours, theirs]
        ours.setblocking(False)
        return ours

    def adopt(self, connection: Connection) -> None:
        assert connection.stream is not None

    def watch_writable(self, connection: Connection, wanted: bool) -> None:
        pass

    def drop(self, connection: Connection) -> None:
        if isinstance(connection.stream, socket.socket):
            connection.stream.close()

    def watch_kick(self, fd: int, ring: int) -> None:
        os.fstat(fd)

    def forget_kick(self, fd: int) -> None:
        pass

    def log(self, level: str, text: str) -> None:
        assert level in ("debug", "info", "warning")

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def _device(host: _Host) -> Device:
    return Device(_CID, host, clock=lambda: 0.0, hold_timeout=1.0, max_connections=_CONNECTIONS)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Afterwards there are as many descriptors as before."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _descriptor(kind: int) -> int:
    match kind % 3:
        case 0:
            return os.eventfd(0, os.EFD_CLOEXEC)
        case 1:
            fd = os.memfd_create("ram", os.MFD_CLOEXEC)
            os.ftruncate(fd, _RAM)
            return fd
        case _:
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _vhost_user(data: bytes) -> None:
    """Messages one after the other: a byte that says how many descriptors come and of what kind, header, payload."""
    with _nothing_kept():
        host = _Host()
        session = Session(_device(host), host)
        try:
            at = 0
            while at + 1 + m.HEADER.size <= len(data):
                given = data[at]
                request, flags, size = m.parse_header(data[at + 1 : at + 1 + m.HEADER.size])
                at += 1 + m.HEADER.size
                payload = data[at : at + size]
                at += size
                fds = [_descriptor(given >> 4) for _ in range(given & 0x0F)]
                answer = session.handle(m.Message(request, flags, payload, fds))
                assert not answer or len(answer) <= m.HEADER.size + m.MAX_PAYLOAD
                session.signal()
        finally:
            session.close()
            host.close()


@contextmanager
def _ram() -> Iterator[tuple[mmap.mmap, GuestMemory]]:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _RAM)
        ram = mmap.mmap(fd, _RAM)
        memory = GuestMemory.map([Region(GUEST_BASE, _RAM, USER_BASE, 0)], [fd])
        try:
            yield ram, memory
        finally:
            memory.close()
            ram.close()
    finally:
        os.close(fd)


_SIZE = 8


def _ring(data: bytes) -> None:
    """The first kilobyte of the guest's memory is `data`, a queue's tables among it."""
    with _ram() as (ram, memory):
        ram[: min(len(data), 1024)] = data[:1024]
        queue = (USER_BASE, USER_BASE + 16 * _SIZE, USER_BASE + 16 * _SIZE + 64)
        ring = Ring(
            memory, _SIZE, queue, struct.unpack_from("<H", ram, 16 * _SIZE + 66)[0], writable=len(data) % 2 == 0
        )
        try:
            for _ in range(64):
                found = ring.peek()
                if found is None:
                    break
                head, pieces = found
                assert all(len(piece) <= _RAM for piece in pieces)
                ring.commit(head, 0)
                ring.take_signal()
        finally:
            ring.release()
            # What it showed are views of the memory.
            found = pieces = []  # type: ignore[assignment]


def _packets(data: bytes) -> None:
    """Packets as the guest's driver sends them: two bytes of length before each."""
    host = _Host()
    with _ram() as (ram, memory):
        queues = Queue(ram, 0x1000, 16), Queue(ram, 0x2000, 16)
        device, rings = _device(host), []
        try:
            for number, queue in enumerate(queues):
                tables = (USER_BASE + queue.descriptors, USER_BASE + queue.available, USER_BASE + queue.used)
                rings.append(Ring(memory, queue.size, tables, 0, writable=number == 0))
            device.start(*rings)
            for number in range(8):
                queues[0].add([(GUEST_BASE + 0x4000 + 512 * number, 512)], WRITE)
            at = 0
            while at + 2 <= len(data):
                length = min(int.from_bytes(data[at : at + 2], "little"), 0x4000)
                content = data[at + 2 : at + 2 + length]
                at += 2 + length
                if not content or not queues[1].free:
                    continue
                ram[0x8000 : 0x8000 + len(content)] = content
                queues[1].add([(GUEST_BASE + 0x8000, len(content))], 0)
                device.tx_pending = True
                for _ in range(20):
                    if not device.run():
                        break
                assert len(device) <= _CONNECTIONS + 4096
                assert len(device._answers) <= MAX_ANSWERS + 64
                while queues[1].take_used():
                    pass
        finally:
            for ring in rings:
                ring.release()
            for queue in queues:
                queue.close()
            host.close()


def _said(request: int, payload: bytes, given: int = 0, flags: int = m.VERSION) -> bytes:
    return bytes([given]) + m.HEADER.pack(request, flags, len(payload)) + payload


def _u64(value: int) -> bytes:
    return m.U64.pack(value)


def _boot() -> bytes:
    said = [_said(m.GET_FEATURES, b""), _said(m.SET_FEATURES, _u64(m.FEATURE_VERSION_1 | m.FEATURE_PROTOCOL))]
    said += [_said(m.SET_PROTOCOL_FEATURES, _u64(m.PROTOCOL_REPLY_ACK)), _said(m.SET_OWNER, b"")]
    said += [_said(m.GET_CONFIG, m.CONFIG.pack(0, 8, 0) + bytes(8)), _said(m.GET_QUEUE_NUM, b"")]
    table = m.TABLE.pack(1, 0) + m.REGION.pack(GUEST_BASE, _RAM, USER_BASE, 0)
    said += [_said(m.SET_MEM_TABLE, table, 0x11, m.VERSION | m.NEED_REPLY)]
    for index in range(2):
        place = USER_BASE + 0x1000 * index
        said += [_said(m.SET_VRING_NUM, m.STATE.pack(index, 8)), _said(m.SET_VRING_BASE, m.STATE.pack(index, 0))]
        said += [_said(m.SET_VRING_ADDR, m.ADDRESS.pack(index, 0, place, place + 512, place + 256, 0))]
        for request in (m.SET_VRING_CALL, m.SET_VRING_ERR, m.SET_VRING_KICK):
            said += [_said(request, _u64(index), 0x01)]
        said += [_said(m.SET_VRING_ENABLE, m.STATE.pack(index, 1))]
    return b"".join([*said, _said(m.GET_VRING_BASE, m.STATE.pack(1, 0))])


def _packet(operation: int, body: bytes = b"", *, port: int = 1024, flags: int = 0) -> bytes:
    content = HEADER.pack(_CID, HOST_CID, 5000, port, len(body), STREAM, operation, flags, 1 << 18, 0) + body
    return len(content).to_bytes(2, "little") + content


def _table() -> bytes:
    """Two descriptors in a chain, made available."""
    first = struct.pack("<QIHH", GUEST_BASE + 0x4000, 100, 1, 1) + struct.pack("<QIHH", GUEST_BASE + 0x5000, 50, 0, 0)
    return (first + bytes(16 * (_SIZE - 2)) + struct.pack("<HHHH", 0, 2, 0, 0)).ljust(301, b"\0")


_GUEST_CONNECTS = b"".join((_packet(1), _packet(RW, b"hello"), _packet(6), _packet(7), _packet(4, flags=3)))
TARGETS = (
    Target(
        "vhost-user",
        "hypervisor.vsock.device: message, frontend",
        _vhost_user,
        (_boot(),),
        (FrontendError,),
        words=(
            m.HEADER.pack(m.SET_MEM_TABLE, 1, 40),
            m.HEADER.pack(m.SET_VRING_KICK, 1, 8),
            m.HEADER.pack(m.SET_VRING_ADDR, 1, 40),
            b"\x11",
            b"\x01",
        ),
    ),
    Target(
        "virtqueue",
        "hypervisor.vsock.device.ring",
        _ring,
        (_table(),),
        (RingError,),
        words=(
            struct.pack("<QIHH", GUEST_BASE, 0, 1, 7),
            struct.pack("<Q", GUEST_BASE + _RAM - 1),
            b"\1\0\2\0",
            b"\2\0",
        ),
    ),
    Target(
        "vsock-packets",
        "hypervisor.vsock.device.device",
        _packets,
        (_GUEST_CONNECTS, _packet(1) * 12),
        (RingError,),
        words=(_packet(1), _packet(3), _packet(5, b"x"), struct.pack("<Q", _CID), b"\0\0\0\0"),
    ),
)
