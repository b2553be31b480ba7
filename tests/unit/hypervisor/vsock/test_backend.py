"""The vsock backend as a process, driven by a fake QEMU: what a guest and its host may rely on."""

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.vsock_backend import Backend, listener
from support.vsock_frontend import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    REQUEST,
    RESPONSE,
    ROOM,
    RST,
    RW,
    SHUTDOWN,
    Frontend,
    booted,
)

PORT = 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Frontend]]:
    """One process for all tests that leave it alive; it must be as it was when they are done."""
    with booted(tmp_path_factory.mktemp("backend"), PORT) as (backend, frontend):
        fds, mappings, memory = backend.fds(), backend.mappings(), backend.rss()
        yield backend, frontend
        frontend.stop()
        frontend.boot()
        frontend.sync()
        assert (backend.fds(), backend.mappings()) == (fds, mappings)
        assert backend.rss() < memory + (8 << 20)
    assert "Warning" not in backend.stderr


@pytest.fixture
def backend(shared: tuple[Backend, Frontend]) -> Backend:
    return shared[0]


@pytest.fixture
def guest(shared: tuple[Backend, Frontend]) -> Frontend:
    """A guest that has just booted."""
    _, frontend = shared
    frontend.stop()
    frontend.boot()
    return frontend


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Backend, Frontend]]:
    """A process of the test's own, and a QEMU that has made the device."""
    with Backend(tmp_path, forwards=(PORT,), unprivileged=False) as backend:
        frontend = Frontend(backend.vhost)
        frontend.handshake()
        yield backend, frontend
        frontend.close()


def connected(backend: Backend, guest: Frontend) -> tuple[socket.socket, int]:
    """A connection from the host, accepted."""
    client = backend.forward(PORT, timeout=5)
    return client, guest.accept(PORT)


def gather(guest: Frontend, size: int, *, taken: int | None = None) -> bytes:
    """So many bytes from the host; with `taken` (before) the guest's application takes them at once."""
    data = b""
    while len(data) < size:
        packet = guest.receive()
        if packet.op == RW:
            data += packet.data
            if taken is not None:
                guest.packet(CREDIT_UPDATE, packet.dst_port, packet.src_port, taken=taken + len(data))
    return data


def read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        assert more
        data += more
    return data


def test_hybrid_connection(backend: Backend, guest: Frontend) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    with client:
        client.connect(str(backend.uds))
        client.sendall(b"CONNECT 10")
        assert guest.silent()
        client.sendall(b"27\nearly")
        host_port = guest.accept(1027)
        assert client.recv(100) == b"OK %d\n" % host_port
        early = guest.expect(RW, host_port)
        assert (early.data, early.dst_port, early.kind) == (b"early", 1027, 1)
        guest.packet(RW, 1027, host_port, b"answer")
        assert client.recv(100) == b"answer"


@pytest.mark.parametrize(
    "line", [b"CONNECT x\n", b"connect 1\n", b"CONNECT 4294967295\n", b"\n", b"x" * 40, b"CONNECT -1\n"]
)
def test_hybrid_nonsense(backend: Backend, guest: Frontend, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(backend.uds))
        client.sendall(line)
        assert client.recv(100) == b""
    assert guest.silent(0.01)


def test_refused(backend: Backend, guest: Frontend) -> None:
    with backend.forward(PORT) as client:
        request = guest.expect(REQUEST)
        guest.packet(RST, PORT, request.src_port)
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):  # a hybrid client sees the same
        _refuse_hybrid(backend, guest)


def _refuse_hybrid(backend: Backend, guest: Frontend) -> None:
    client = socket.socket(socket.AF_UNIX)
    with client:
        client.connect(str(backend.uds))
        client.sendall(b"CONNECT 9\n")
        guest.packet(RST, 9, guest.expect(REQUEST).src_port)
        if not client.recv(10):
            raise ConnectionRefusedError


def test_host_ports_start_at_random(tmp_path: Path) -> None:
    ports = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with Backend(tmp_path / name, forwards=(PORT,), unprivileged=False) as backend:
            guest = Frontend(backend.vhost)
            guest.handshake()
            guest.boot()
            client, host_port = connected(backend, guest)
            client.close()
            ports.add(host_port)
            guest.close()
    assert len(ports) == 2
    assert all(port >= 0x4000_0000 for port in ports)


def test_connections_are_held_until_the_guest_is_there(own: tuple[Backend, Frontend]) -> None:
    backend, guest = own
    with backend.forward(PORT) as client, backend.forward(PORT) as gone, backend.forward(PORT) as brief:
        client.sendall(b"patience")
        gone.close()
        brief.sendall(b"last words")
        brief.close()
        guest.sync()
        guest.boot()
        requests = {guest.expect(REQUEST).src_port for _ in range(2)}
        for port in requests:
            guest.packet(RESPONSE, PORT, port)
        heard: set[bytes] = set()
        while len(heard) < 2:
            packet = guest.receive()
            if packet.op == RW:
                heard.add(packet.data)
        assert heard == {b"patience", b"last words"}


def test_hold_timeout(tmp_path: Path) -> None:
    with Backend(tmp_path, forwards=(PORT,), hold_timeout=0.05, unprivileged=False) as backend:
        guest = Frontend(backend.vhost)
        guest.handshake()
        with backend.forward(PORT) as client, socket.socket(socket.AF_UNIX) as dumb:
            dumb.settimeout(5)
            dumb.connect(str(backend.uds))
            assert client.recv(1) == b""
            assert dumb.recv(1) == b""
        guest.boot()
        with backend.forward(PORT) as client:
            request = guest.expect(REQUEST)
            assert client.recv(1) == b""
            guest.expect(RST, request.src_port)
        assert f"guest port {PORT} did not answer in 0.05 s" in backend.stderr
        guest.close()


def test_guest_connects(backend: Backend, guest: Frontend) -> None:
    with listener(Path(f"{backend.uds}_7000")) as service:
        guest.packet(REQUEST, 5000, 7000)
        response = guest.expect(RESPONSE, 7000)
        assert (response.dst_port, response.room) == (5000, ROOM)
        peer, _ = service.accept()
        with peer:
            guest.packet(RW, 5000, 7000, b"spans")
            assert peer.recv(10) == b"spans"
            peer.sendall(b"thanks")
            assert guest.expect(RW, 7000).data == b"thanks"


RULES: dict[str, tuple[dict[str, Any], bool]] = {
    "nobody listens": ({"op": REQUEST}, True),
    "unknown connection": ({"op": RW, "data": b"x"}, True),
    "unknown shutdown": ({"op": SHUTDOWN, "flags": 3}, True),
    "unknown operation": ({"op": 77}, True),
    "reset is not answered": ({"op": RST}, False),
    "seqpacket": ({"op": REQUEST, "kind": 2}, True),
    "another CID": ({"op": REQUEST, "dst_cid": 7}, True),
    "the hypervisor's CID": ({"op": REQUEST, "dst_cid": 0}, True),
    "reset to another CID": ({"op": RST, "dst_cid": 7}, False),
    "in another's name": ({"op": REQUEST, "src_cid": 4}, False),
    "port that is none": ({"op": REQUEST, "host_port": 0xFFFF_FFFF}, True),
}


@pytest.mark.parametrize("name", RULES)
def test_resets(guest: Frontend, name: str) -> None:
    fields, answered = RULES[name]
    sent: dict[str, Any] = {"guest_port": 5000, "host_port": 10240, **fields}
    guest.packet(**sent)
    if not answered:
        assert guest.silent()
        return
    reset = guest.expect(RST)
    assert reset.src_cid == sent.get("dst_cid", 2)
    assert (reset.src_port, reset.dst_port) == (sent["host_port"], 5000)
    assert reset.kind == sent.get("kind", 1)


def test_a_request_for_a_connection_that_exists_ends_it(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        guest.packet(REQUEST, PORT, host_port)
        guest.expect(RST, host_port)
        assert client.recv(1) == b""


def test_guest_half_closes(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        guest.packet(RW, PORT, host_port, b"question")
        guest.packet(SHUTDOWN, PORT, host_port, flags=2)
        assert read(client, 8) == b"question"
        assert client.recv(1) == b""
        client.sendall(b"late answer")
        assert guest.expect(RW).data == b"late answer"
        client.close()
        assert guest.expect(SHUTDOWN).flags == 3
        guest.packet(RST, PORT, host_port)
        # Nothing is left of it.
        guest.packet(CREDIT_UPDATE, PORT, host_port)
        guest.expect(RST, host_port)


def test_host_half_closes(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert guest.expect(RW).data == b"question"
        assert guest.expect(SHUTDOWN).flags == 2
        guest.packet(RW, PORT, host_port, b"late answer")
        guest.packet(SHUTDOWN, PORT, host_port, flags=3)
        guest.expect(RST, host_port)  # at once, or the guest's close() lingers
        assert read(client, 11) == b"late answer"
        assert client.recv(1) == b""


def test_guest_closes_while_the_host_is_slow(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    data = bytes(range(256)) * 1024
    with client:
        sent = 0
        while sent < ROOM:
            guest.packet(RW, PORT, host_port, data[sent : sent + 32768])
            sent += 32768
        guest.packet(SHUTDOWN, PORT, host_port, flags=3)
        while guest.receive().op != RST:
            pass
        # The pair of ports is free again, and the old stream still complete.
        guest.packet(CREDIT_UPDATE, PORT, host_port)
        guest.expect(RST, host_port)
        assert read(client, ROOM) == data
        assert client.recv(1) == b""


def test_host_closes_with_bytes_unread(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    guest.packet(RW, PORT, host_port, b"never read")
    assert client.recv(1, socket.MSG_PEEK)
    client.close()
    assert guest.expect(SHUTDOWN).flags == 3
    guest.packet(RW, PORT, host_port, b"on its way")  # is dropped, and no offence
    guest.packet(SHUTDOWN, PORT, host_port, flags=3)
    guest.expect(RST, host_port)


def test_guest_will_not_read(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        guest.packet(SHUTDOWN, PORT, host_port, flags=1)
        guest.packet(RW, PORT, host_port, b"but sends")
        assert read(client, 9) == b"but sends"
        with pytest.raises(BrokenPipeError):
            client.sendall(b"x")
        client.close()
        assert guest.expect(SHUTDOWN).flags == 3


def test_credit_to_the_guest(backend: Backend, guest: Frontend) -> None:
    client = backend.forward(PORT, timeout=5)
    with client:
        request = guest.expect(REQUEST)
        host_port = request.src_port
        guest.packet(RESPONSE, PORT, host_port, room=10)
        client.sendall(b"0123456789abcdef")
        assert guest.expect(RW).data == b"0123456789"
        guest.expect(CREDIT_REQUEST)
        assert guest.silent()  # asked once
        guest.packet(CREDIT_UPDATE, PORT, host_port, room=4, taken=10)
        assert guest.expect(RW).data == b"abcd"
        guest.expect(CREDIT_REQUEST)
        guest.packet(CREDIT_UPDATE, PORT, host_port, room=2, taken=10)  # shrank: room for -2
        assert guest.silent()
        guest.packet(CREDIT_UPDATE, PORT, host_port, room=2, taken=14)
        assert guest.expect(RW).data == b"ef"


def test_credit_to_the_host(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        guest.packet(RW, PORT, host_port, bytes(40000))
        assert guest.silent(0.02)
        guest.packet(RW, PORT, host_port, bytes(30000))  # past a quarter of the window
        update = guest.expect(CREDIT_UPDATE)
        assert (update.room, update.taken) == (ROOM, 70000)
        read(client, 70000)
        guest.packet(CREDIT_REQUEST, PORT, host_port)
        assert guest.expect(CREDIT_UPDATE).taken == 70000


def test_credit_overrun(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        op, sent = CREDIT_UPDATE, 0
        while op == CREDIT_UPDATE and sent < 2 << 20:  # nobody reads at the host
            guest.packet(RW, PORT, host_port, bytes(32768))
            sent += 32768
            for _ in range(2):
                guest.sync()
            with contextlib.suppress(TimeoutError):
                op = guest.receive(0).op
        assert op == RST
        assert ROOM < sent < ROOM + (1 << 20)


def test_slow_host_gets_everything(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    other, other_port = connected(backend, guest)
    data = bytes(i * 7 & 255 for i in range(256)) * 4096
    sent = taken = 0
    received = b""
    with client, other:
        while len(received) < len(data):
            while sent < len(data) and sent - taken + 16384 <= ROOM:
                guest.packet(RW, PORT, host_port, data[sent : sent + 16384])
                sent += 16384
            try:
                while True:
                    taken = guest.receive(0.01).taken
            except TimeoutError:
                pass
            guest.packet(RW, PORT, other_port, b"other")
            assert read(other, 5) == b"other"
            received += read(client, min(131072, sent - len(received)))
        assert received == data


def test_slow_guest_gets_everything(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    data = bytes(i * 7 & 255 for i in range(256)) * 4096
    sending = threading.Thread(target=client.sendall, args=(data,))
    with client:
        sending.start()
        first = gather(guest, ROOM)
        guest.expect(CREDIT_REQUEST)
        assert guest.silent(0.02)
        assert sending.is_alive()
        guest.packet(CREDIT_UPDATE, PORT, host_port, taken=ROOM)
        rest = gather(guest, len(data) - ROOM, taken=ROOM)
        sending.join()
        assert first + rest == data


@pytest.mark.parametrize("cut", [(), (44,), (43,), (1, 2, 3), (44, 45, 1000), (20, 44, 60)])
def test_packets_in_pieces(backend: Backend, guest: Frontend, cut: tuple[int, ...]) -> None:
    client, host_port = connected(backend, guest)
    data = bytes(range(256)) * 8
    with client:
        guest.packet(RW, PORT, host_port, data, cut=cut)
        assert read(client, len(data)) == data


@pytest.mark.parametrize("room", [20, ROOM])
@pytest.mark.parametrize("sizes", [(44, 4052), (20, 24, 4052), (44, 5, 30), (10, 40, 3000), (60,)])
def test_buffers_in_pieces(backend: Backend, guest: Frontend, sizes: tuple[int, ...], room: int) -> None:
    """Linux up to 6.2 has its header and its data apart."""
    guest.stop()
    guest.rx.reset()
    guest.tx.reset()
    for _ in range(15):
        guest.add_rx(*sizes)
    guest.start()
    with backend.forward(PORT, timeout=5) as client:
        request = guest.receive(refill=False)
        assert request.op == REQUEST
        data = b"0123456789" * 100
        client.sendall(data)
        guest.packet(RESPONSE, PORT, request.src_port, room=room)
        first = guest.receive(refill=False)
        assert (first.op, first.data) == (RW, data[: min(room, sum(sizes) - 44)])


@pytest.mark.slow
def test_many_connections(backend: Backend, guest: Frontend) -> None:
    clients = [backend.forward(PORT, timeout=5) for _ in range(200)]
    ports = [guest.accept(PORT) for _ in clients]
    for number, port in enumerate(ports):
        guest.packet(RW, PORT, port, b"%d" % number)
    for number, client in enumerate(clients):
        assert client.recv(10) == b"%d" % number
        client.sendall(b"%d back" % number)
    heard = {packet.src_port: packet.data for packet in (guest.receive() for _ in clients)}
    assert heard == {port: b"%d back" % number for number, port in enumerate(ports)}
    before = backend.fds()
    for client in clients:
        client.close()
    for _ in clients:
        packet = guest.expect(SHUTDOWN)
        guest.packet(RST, PORT, packet.src_port)
    guest.packet(RW, PORT, ports[0], b"x")
    guest.expect(RST)
    assert backend.fds() == before - 200


def test_pause(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    with client:
        for round_ in range(3):
            mappings = backend.mappings()
            bases = guest.stop()
            client.sendall(b"%d" % round_)
            with backend.forward(PORT) as held:
                guest.start(bases)
                words = {guest.receive().op for _ in range(2)}
                assert words == {REQUEST, RW}
                held.close()
                guest.receive()  # its RST
            guest.packet(RW, PORT, host_port, b"on")
            assert read(client, 2) == b"on"
            assert backend.mappings() == mappings


def test_reset(backend: Backend, guest: Frontend) -> None:
    client, host_port = connected(backend, guest)
    waiting = backend.forward(PORT)
    with client, waiting:
        asked = guest.expect(REQUEST)
        guest.stop()
        guest.boot()
        assert client.recv(1) == b""
        # The one without an answer asks the new driver.
        assert guest.expect(REQUEST).src_port == asked.src_port
        guest.packet(RW, PORT, host_port, b"from the dead")
        guest.expect(RST, host_port)


def test_a_new_call_fd_is_signalled(guest: Frontend) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    guest.send(13, struct.pack("=Q", 0), [fd])
    assert select.select([fd], [], [], 5)[0]
    os.close(fd)


def test_qemu_hangs_up(own: tuple[Backend, Frontend]) -> None:
    backend, guest = own
    guest.boot()
    client, _ = connected(backend, guest)
    with client:
        guest.vhost.close()
        assert client.recv(1) == b""
    assert backend.wait() == 0
    assert "Warning" not in backend.stderr


def test_sigterm(own: tuple[Backend, Frontend]) -> None:
    backend, guest = own
    guest.sync()
    backend.process.terminate()
    assert backend.wait() == 0
