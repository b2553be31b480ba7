"""The vsock backend against guests that cheat and a QEMU that is confused."""

import contextlib
import os
import random
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.vsock_backend import Backend
from support.vsock_frontend import (
    GUEST_BASE,
    INDIRECT,
    NEXT,
    RAM_SIZE,
    REQUEST,
    RESPONSE,
    ROOM,
    RST,
    RW,
    SHUTDOWN,
    USER_BASE,
    WRITE,
    Frontend,
    booted,
)

PORT = 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Frontend]]:
    """One process that has to survive every guest of this module."""
    with booted(tmp_path_factory.mktemp("backend"), PORT) as (backend, frontend):
        fds, memory = backend.fds(), backend.rss()
        yield backend, frontend
        frontend.sync()
        assert backend.fds() == fds
        assert backend.rss() < memory + (16 << 20)
    assert "Traceback" not in backend.stderr


@pytest.fixture
def guest(shared: tuple[Backend, Frontend]) -> Iterator[Frontend]:
    """A guest that has just booted; afterwards the next one must find a device that works."""
    backend, frontend = shared
    frontend.stop()
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(frontend.tx.error)
    frontend.boot()
    yield frontend
    frontend.stop()
    frontend.boot()
    with backend.forward(PORT, timeout=5) as client:
        host_port = frontend.accept(PORT)
        frontend.packet(RW, PORT, host_port, b"well")
        assert client.recv(4) == b"well"
    frontend.receive()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Backend, Frontend]]:
    """A process of the test's own, and a QEMU that has made the device."""
    with Backend(tmp_path, unprivileged=False) as backend:
        frontend = Frontend(backend.vhost)
        frontend.handshake()
        yield backend, frontend
        frontend.close()


def _jump(guest: Frontend) -> None:
    guest.tx.publish((guest.tx.added + guest.tx.size + 1) & 0xFFFF)


def _head(guest: Frontend) -> None:
    guest.tx.offer(guest.tx.size)


def _chain(*descriptors: tuple[int, int, int, int]) -> Callable[[Frontend], None]:
    """A TX chain of these descriptors, from 0 on."""

    def attack(guest: Frontend) -> None:
        for index, each in enumerate(descriptors):
            guest.tx.descriptor(index, *each)
        guest.tx.offer(0)

    return attack


def _rx(length: int, flags: int = WRITE) -> Callable[[Frontend], None]:
    """An RX buffer of this kind, and a reason to use it."""

    def attack(guest: Frontend) -> None:
        guest.stop()
        guest.rx.reset()
        guest.tx.reset()
        guest.rx.add([(guest.rx_buffers, length)], flags)
        guest.start()
        guest.packet(RW, 1, 1)

    return attack


RINGS: dict[str, Callable[[Frontend], None]] = {
    "available index jumps": _jump,
    "head out of range": _head,
    "next out of range": _chain((GUEST_BASE, 44, NEXT, 500)),
    "chain loops": _chain((GUEST_BASE, 44, NEXT, 1), (GUEST_BASE, 44, NEXT, 0)),
    "address below RAM": _chain((0, 44, 0, 0)),
    "address above RAM": _chain((GUEST_BASE + RAM_SIZE, 44, 0, 0)),
    "runs out of RAM": _chain((GUEST_BASE + RAM_SIZE - 43, 44, 0, 0)),
    "address wraps": _chain((2**64 - 10, 44, 0, 0)),
    "4 GiB": _chain((GUEST_BASE, 2**32 - 1, 0, 0)),
    "indirect": _chain((GUEST_BASE, 64, INDIRECT, 0)),
    "nested indirect": _chain((GUEST_BASE, 64, INDIRECT | NEXT, 1)),
    "TX buffer to write": _chain((GUEST_BASE, 44, WRITE, 0)),
    "shorter than a header": _chain((GUEST_BASE, 43, 0, 0)),
    "empty": _chain((GUEST_BASE, 0, 0, 0)),
    "empty and nowhere": _chain((0, 0, 0, 0)),
    "RX buffer to read": _rx(4096, 0),
    "RX buffer too small": _rx(20),
}


@pytest.mark.parametrize("name", RINGS)
def test_broken_ring(shared: tuple[Backend, Frontend], guest: Frontend, name: str) -> None:
    backend, _ = shared
    with backend.forward(PORT, timeout=5) as client:
        host_port = guest.accept(PORT)
        guest.packet(RW, PORT, host_port, b"before")
        assert client.recv(6) == b"before"
        RINGS[name](guest)
        guest.tx.signal(force=True)
        guest.rx.signal(force=True)
        # QEMU is told, the host's clients too.
        assert select.select([guest.tx.error], [], [], 5)[0]
        assert client.recv(1) == b""
    guest.sync()
    assert backend.alive()


def test_rx_buffer_without_room_for_data(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    backend, _ = shared
    guest.stop()
    guest.rx.reset()
    guest.tx.reset()
    for _ in range(2):
        guest.add_rx(44)
    guest.start()
    with backend.forward(PORT, timeout=5) as client:
        request = guest.receive(refill=False)
        assert request.op == REQUEST
        client.sendall(b"x")
        guest.packet(RESPONSE, PORT, request.src_port)
        with contextlib.suppress(ConnectionResetError):  # "x" was never read
            assert client.recv(1) == b""


def test_queues_outside_ram_and_memory_that_is_not_shared(own: tuple[Backend, Frontend]) -> None:
    backend, guest = own
    guest.boot()
    guest.stop()
    struct.pack_into("<H", guest.ram, guest.rx.used + 2, 4711)
    guest.start()
    guest.sync()
    assert "4711" in backend.stderr
    assert "share=on" in backend.stderr
    guest.stop()
    guest.rx.reset()
    place, guest.tx.descriptors = guest.tx.descriptors, RAM_SIZE
    guest.start()
    guest.sync()
    guest.tx.descriptors = place
    assert "is not in guest RAM" in backend.stderr


def _data_after_the_end(guest: Frontend, port: int) -> None:
    guest.packet(SHUTDOWN, PORT, port, flags=2)
    guest.packet(RW, PORT, port, b"x")


def test_kick_without_a_buffer_hints_at_memory(own: tuple[Backend, Frontend]) -> None:
    """What a guest in private memory looks like: its driver kicks, and all we see is an empty ring."""
    backend, guest = own
    guest.boot(rx_buffers=0)
    guest.sync()
    guest.rx.signal(force=True)
    for _ in range(2):
        guest.sync()
    assert "share=on" in backend.stderr


STREAMS: dict[str, Callable[[Frontend, int], None]] = {
    "more announced than there": lambda guest, port: guest.packet(RW, PORT, port, b"abc", length=4),
    "4 GiB announced": lambda guest, port: guest.packet(RW, PORT, port, b"abc", length=2**32 - 1),
    "data after its end": _data_after_the_end,
    "second response": lambda guest, port: guest.packet(RESPONSE, PORT, port),
    "unknown operation": lambda guest, port: guest.packet(99, PORT, port),
    "operation 0": lambda guest, port: guest.packet(0, PORT, port),
}


@pytest.mark.parametrize("name", STREAMS)
def test_broken_stream(shared: tuple[Backend, Frontend], guest: Frontend, name: str) -> None:
    backend, _ = shared
    with backend.forward(PORT, timeout=5) as client, backend.forward(PORT, timeout=5) as other:
        ports = [guest.accept(PORT) for _ in range(2)]
        STREAMS[name](guest, ports[0])
        guest.expect(RST, ports[0])
        assert client.recv(1) == b""
        # Others don't notice.
        guest.packet(RW, PORT, ports[1], b"fine")
        assert other.recv(4) == b"fine"


def test_data_before_the_answer(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    backend, _ = shared
    with backend.forward(PORT, timeout=5) as client:
        request = guest.expect(REQUEST)
        guest.packet(RW, PORT, request.src_port, b"x")
        guest.expect(RST, request.src_port)
        assert client.recv(1) == b""


def test_lies_about_credit_hurt_only_the_liar(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    backend, _ = shared
    with backend.forward(PORT, timeout=5) as client:
        request = guest.expect(REQUEST)
        guest.packet(RESPONSE, PORT, request.src_port, room=100, taken=2**31)
        client.sendall(b"never")
        guest.sync()
        guest.packet(RW, PORT, request.src_port, b"x")
        assert client.recv(1) == b"x"


def test_flood_without_rx_buffers(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    """Answers wait for buffers; when too many do, TX stands still, and goes on afterwards."""
    backend, _ = shared
    guest.stop()
    guest.rx.reset()
    guest.tx.reset()
    guest.start()
    sent = 0
    while sent < 5000 and len(guest.tx.free) > 1:
        guest.packet(RW, 1, sent, kick=False)
        sent += 1
        if len(guest.tx.free) == 1:
            guest.tx.signal(force=True)
            for _ in range(3):  # the kick is seen, and the ring has been looked at, before the last answer
                guest.sync()
            while guest.tx.take_used():
                pass
    assert 1024 <= sent <= 1024 + guest.tx.size
    cpu = backend.cpu()
    with contextlib.suppress(TimeoutError):
        guest.rx.wait_used(0.2)
    assert backend.cpu() - cpu < 0.1  # it waits, it does not spin
    for _ in range(32):
        guest.add_rx()
    guest.rx.signal()
    assert [guest.expect(RST).src_port for _ in range(sent)] == list(range(sent))


def test_flood_of_connections(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    """Refused above the limit, and memory stays bounded."""
    backend, _ = shared
    service = socket.socket(socket.AF_UNIX)
    with service:
        service.bind(f"{backend.uds}_1")
        service.listen(4096)
        peers = []
        answers = []
        for port in range(1100):
            guest.packet(REQUEST, port, 1)
            answers.append(guest.receive().op)
            if answers[-1] == RESPONSE:
                peers.append(service.accept()[0])
        assert answers == [RESPONSE] * 1000 + [RST] * 100
        for peer in peers:
            peer.close()


def test_one_byte_packets_to_a_slow_host(shared: tuple[Backend, Frontend], guest: Frontend) -> None:
    backend, _ = shared
    with backend.forward(PORT, timeout=5) as client:
        host_port = guest.accept(PORT)
        for _ in range(3000):
            guest.packet(RW, PORT, host_port, b"x")
        received = 0
        while received < 3000:
            received += len(client.recv(65536))


def _run_without_memory(guest: Frontend) -> None:
    for index in (0, 1):
        guest.send(12, struct.pack("=Q", index), [guest.rx.kick])
        guest.state(18, index, 1)


def _call_that_can_not_be_written(guest: Frontend) -> None:
    guest.start()
    read_only = os.open("/dev/null", os.O_RDONLY)
    guest.send(13, RING_0, [read_only])
    os.close(read_only)


def _base_of_a_running_ring(guest: Frontend) -> None:
    guest.start()
    guest.state(10, 0, 5)


RING_0 = struct.pack("=Q", 0)

# What QEMU must not say, by what the one line about it says.
VIOLATIONS: dict[str, Callable[[Frontend], None]] = {
    "flags 0x2": lambda guest: guest.send(1, flags=2),
    "announces": lambda guest: guest.vhost.sendall(struct.pack("=III", 1, 1, 1 << 30)),
    "message 99": lambda guest: guest.send(99),
    "bytes of payload": lambda guest: guest.send(8, b"123"),
    "ring 2": lambda guest: guest.state(8, 2, 64),
    "of size 0": lambda guest: guest.state(8, 0, 0),
    "of size 65536": lambda guest: guest.state(8, 0, 65536),
    "at 65536": lambda guest: guest.state(10, 0, 65536),
    "not offered": lambda guest: guest.number(2, 1 << 28),
    "SET_PROTOCOL_FEATURES": lambda guest: guest.number(16, 1 << 16),
    "2 regions": lambda guest: guest.send(5, struct.pack("=II", 2, 0) + bytes(32), [guest.memfd]),
    "9 regions": lambda guest: guest.send(5, struct.pack("=II", 9, 0) + bytes(9 * 32), [guest.memfd] * 8),
    "within its file": lambda guest: guest.send(5, struct.pack("=IIQQQQ", 1, 0, 0, RAM_SIZE, 0, 1), [guest.memfd]),
    "can't be mapped": lambda guest: guest.send(5, struct.pack("=IIQQQQ", 1, 0, 0, 0, 0, 2**64 - 1), [guest.memfd]),
    "polling is not supported": lambda guest: guest.number(12, 1 << 8),
    "can't be waited for": lambda guest: guest.send(12, RING_0, [guest.memfd]),
    "without memory": _run_without_memory,
    "0 file descriptors": lambda guest: guest.send(13, RING_0),
    "more than 8": lambda guest: guest.send(13, RING_0, [guest.memfd] * 9),
    "can't be signalled": _call_that_can_not_be_written,
    "which runs": _base_of_a_running_ring,
    "GET_CONFIG": lambda guest: guest.send(24, b"1234"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_by_qemu(tmp_path: Path, name: str) -> None:
    with Backend(tmp_path, unprivileged=False, log_level="warning") as backend:
        guest = Frontend(backend.vhost)
        guest.handshake()
        VIOLATIONS[name](guest)
        assert backend.wait() == 1
        assert backend.stderr.startswith("vsock backend: error: QEMU: ")
        assert backend.stderr.count("\n") == 1
        assert name in backend.stderr
        guest.close()


def test_config_out_of_bounds_is_an_empty_answer(shared: tuple[Backend, Frontend]) -> None:
    _, guest = shared
    for offset, size in ((0, 9), (8, 1), (2**32 - 1, 2**32 - 1), (0, 2**32 - 1)):
        assert guest.ask(24, struct.pack("=III", offset, size, 0)) == b""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_messages(tmp_path: Path, seed: int) -> None:
    """A QEMU that talks at random ends the process in order, or is borne."""
    dice = random.Random(seed)
    with Backend(tmp_path, unprivileged=False, log_level="warning") as backend:
        guest = Frontend(backend.vhost)
        guest.handshake()
        if dice.random() < 0.5:
            guest.boot()
        memory = backend.rss()
        with contextlib.suppress(OSError):
            for _ in range(200):
                _random_message(guest, dice)
                if select.select([guest.vhost], [], [], 0)[0]:
                    guest.vhost.recv(65536)
        with contextlib.suppress(ProcessLookupError):  # it may end any moment
            assert backend.rss() < memory + (32 << 20)
        guest.close()
        assert backend.wait() in (0, 1)
        assert "Traceback" not in backend.stderr


def _random_message(guest: Frontend, dice: random.Random) -> None:
    request = dice.choice((1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 25, dice.randrange(64)))
    small = struct.pack("=II", dice.randrange(2), dice.choice((0, 1, 64, 256)))
    ring = guest.rx if dice.random() < 0.5 else guest.tx
    base = USER_BASE if dice.random() < 0.9 else 0
    payload = dice.choice(
        (
            b"",
            small,
            struct.pack("=Q", dice.choice((0, 1, 0x100, 0x101, 1 << 30, 1 << 32, 1 << 30 | 1 << 32))),
            struct.pack(
                "=IIQQQQ", dice.randrange(2), 0, base + ring.descriptors, base + ring.used, base + ring.available, 0
            ),
            struct.pack("=IIQQQQ", 1, 0, GUEST_BASE, RAM_SIZE, base, 0),
            dice.randbytes(dice.choice((4, 8, 12, 20, 40, 100))),
        )
    )
    fds = dice.choices((guest.rx.kick, guest.tx.kick, guest.rx.call, guest.memfd), k=dice.choice((0, 0, 1, 1, 2)))
    # Mostly well-formed, so that it gets somewhere.
    sizes = {5: 40, 8: 8, 9: 40, 10: 8, 11: 8, 18: 8, 12: 8, 13: 8, 14: 8, 2: 8, 16: 8}
    if request in sizes and len(payload) != sizes[request] and dice.random() < 0.95:
        return
    if request in (5, 12, 13, 14) and dice.random() < 0.95:
        fds = [guest.memfd if request == 5 else dice.choice((guest.rx.kick, guest.rx.call))]
    guest.send(request, payload, fds, flags=1 if dice.random() < 0.9 else 9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_random_rings(shared: tuple[Backend, Frontend], guest: Frontend, seed: int) -> None:
    """Random packets, random descriptors and random bytes in the rings, while the host talks."""
    backend, _ = shared
    dice = random.Random(seed)
    with backend.forward(PORT) as client, backend.forward(PORT) as other:
        ports = [guest.accept(PORT) for _ in range(2)]
        guest.timeout = 0.05
        for each in (client, other):
            each.setblocking(False)
        try:
            for _ in range(150):
                _random_step(guest, dice, ports, client if dice.random() < 0.5 else other)
        except TimeoutError:
            pass  # the device has given up on this guest
        finally:
            guest.timeout = 5.0
    guest.sync()
    assert backend.alive()


def _random_step(guest: Frontend, dice: random.Random, ports: list[int], client: socket.socket) -> None:
    kind = dice.random()
    if kind < 0.6:
        guest.packet(
            dice.randrange(9),
            dice.choice((PORT, 1)),
            dice.choice((*ports, 5, dice.randrange(2**32))),
            bytes(dice.choice((0, 1, 100, 30000))),
            flags=dice.randrange(4),
            room=dice.choice((0, 1, ROOM, 2**32 - 1)),
            taken=dice.choice((0, 1, 2**31)),
            cut=dice.choice(((), (44,), (10, 44), (44, 50))),
        )
    elif kind < 0.8:
        with contextlib.suppress(OSError):
            client.send(bytes(dice.randrange(1, 5000)))
        with contextlib.suppress(TimeoutError, AssertionError, struct.error):
            while True:
                guest.receive(0.001)
    elif kind < 0.97:
        queue = guest.rx if dice.random() < 0.5 else guest.tx
        address = GUEST_BASE + dice.randrange(RAM_SIZE) if dice.random() < 0.9 else dice.randrange(2**64)
        queue.descriptor(
            dice.randrange(queue.size), address, dice.choice((0, 44, 4096)), dice.randrange(4), dice.randrange(64)
        )
    else:
        offset = dice.randrange(guest.rx.descriptors, guest.tx.used + 6 + 8 * guest.tx.size)
        guest.ram[offset : offset + 8] = dice.randbytes(8)
        guest.tx.signal(force=True)
        guest.rx.signal(force=True)
