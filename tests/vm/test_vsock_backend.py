"""The vsock backend under a real QEMU with a real guest kernel."""

import hashlib
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import vsock_guest
from support.vsock_backend import Backend, listener
from support.vsock_vm import Vm

pytestmark = pytest.mark.vm

ECHO, DIGEST, SOURCE, EXECUTE, COUNT = 5001, 5002, 5003, 5004, 5005
MIB = 1 << 20


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> vsock_guest.Guest:
    """Kernel and initramfs; KATA_TEST_VSOCK_GUEST names a directory to keep them in."""
    kept = os.environ.get("KATA_TEST_VSOCK_GUEST")
    return vsock_guest.build(Path(kept) if kept else tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """For sockets that an unprivileged process has to reach; pytest's own directories are private."""
    with tempfile.TemporaryDirectory(prefix="vsock-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def machine(guest: vsock_guest.Guest, directory: Path) -> Iterator[tuple[Backend, Vm]]:
    with Backend(directory, forwards=(ECHO, COUNT, SOURCE)) as backend, Vm(guest, directory, backend.vhost) as vm:
        vm.wait_console(b"guest: ready")
        yield backend, vm


def receive(stream: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = bytearray()
    while len(data) < size:
        more = stream.recv(size - len(data))
        assert more, f"ended after {len(data)} of {size} bytes"
        data += more
    return bytes(data)


def read_all(stream: socket.socket) -> bytes:
    """Everything up to the end of file."""
    data = b""
    while more := stream.recv(65536):
        data += more
    return data


def execute(backend: Backend, code: str) -> str:
    """Run Python in the guest; returns what it answers."""
    stream, _ = backend.connect(EXECUTE)
    with stream:
        stream.sendall(code.encode())
        stream.shutdown(socket.SHUT_WR)
        return read_all(stream).decode()


def test_latency(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    stream, _ = backend.connect(ECHO)
    data, times = os.urandom(1024), []
    with stream:
        for _ in range(500):
            start = time.perf_counter()
            stream.sendall(data)
            assert receive(stream, 1024) == data
            times.append((time.perf_counter() - start) * 1e6)
    median = statistics.median(times)
    print(f"1 KiB echo: median {median:.0f} us, p90 {statistics.quantiles(times, n=10)[8]:.0f} us")
    assert median < 4000  # 250 on a quiet machine; ours are shared


def test_throughput(machine: tuple[Backend, Vm]) -> None:
    """Asserted is what a byte costs, which a busy machine changes least; MB/s are for the reader."""
    backend, _ = machine
    size, block, buffer = 100 * MIB, bytes(65536), bytearray(1 << 18)
    for _ in range(2):
        with backend.forward(COUNT) as stream:
            cpu, start = backend.cpu(), time.perf_counter()
            for _ in range(size // len(block)):
                stream.sendall(block)
            stream.shutdown(socket.SHUT_WR)
            assert int(read_all(stream)) == size
            report("host to guest", size, time.perf_counter() - start, backend.cpu() - cpu)
        with backend.forward(SOURCE) as stream:
            cpu, start, got = backend.cpu(), time.perf_counter(), 0
            stream.sendall(size.to_bytes(8, "big"))
            while got < size:
                got += (count := stream.recv_into(buffer))
                assert count
            report("guest to host", size, time.perf_counter() - start, backend.cpu() - cpu)


def report(way: str, size: int, took: float, cpu: float) -> None:
    """Print a throughput; the backend's share must be small."""
    cost = cpu * 1e3 / (size / 1e6)
    print(f"{way} {size / took / 1e6:.0f} MB/s, backend {cpu / took:.0%} of a core, {cost:.1f} ms per MB")
    assert cost < 8  # 1.8 and 0.9 on a quiet machine


def test_half_close_and_checksum(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    data = random.Random(1).randbytes(8 * MIB)
    stream, _ = backend.connect(DIGEST)
    with stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream).decode() == f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def test_a_client_may_leave_as_soon_as_it_has_written(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    heard = listener(backend.directory / "vs.sock_7001")
    (backend.directory / "vs.sock_7001").chmod(0o666)
    execute(
        backend,
        "import socket, threading\n"
        "def once(l):\n"
        "    peer = l.accept()[0]; data = b''\n"
        "    while more := peer.recv(65536): data += more\n"
        "    out = socket.socket(socket.AF_VSOCK); out.connect((2, 7001))\n"
        "    out.sendall(b'%d' % len(data)); out.close()\n"
        "l = socket.socket(socket.AF_VSOCK); l.bind((0xffffffff, 5100)); l.listen()\n"
        "threading.Thread(target=once, args=(l,), daemon=True).start()",
    )
    stream, _ = backend.connect(5100)
    stream.sendall(bytes(150_000))
    stream.close()
    with heard, heard.accept()[0] as answer:
        assert read_all(answer) == b"150000"


def test_guest_connects_to_the_host(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    code = (
        "import socket, time\n"
        "s = socket.socket(socket.AF_VSOCK); s.settimeout(5)\n"
        "s.connect((2, 7000)); s.sendall(b'from guest'); s.shutdown(1); data = b''\n"
        "while more := s.recv(100): data += more\n"
        "start = time.monotonic(); s.close(); result = data, time.monotonic() - start < 1"
    )
    with listener(backend.directory / "vs.sock_7000") as service:
        (backend.directory / "vs.sock_7000").chmod(0o666)
        answer: list[str] = []
        thread = threading.Thread(target=lambda: answer.append(execute(backend, code)))
        thread.start()
        with service.accept()[0] as peer:
            assert read_all(peer) == b"from guest"
            peer.sendall(b"late answer")
        thread.join()
    assert answer == ["(b'late answer', True)"]


@pytest.mark.parametrize("address", ["(2, 7999)", "(7, 5000)"])
def test_guest_is_refused_at_once(machine: tuple[Backend, Vm], address: str) -> None:
    backend, _ = machine
    code = f"import socket\ns = socket.socket(socket.AF_VSOCK); s.settimeout(1); s.connect({address})"
    assert execute(backend, code).startswith("ConnectionResetError")


def test_host_is_refused_at_once(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    start = time.perf_counter()
    with pytest.raises(ConnectionRefusedError):
        backend.connect(9)
    assert time.perf_counter() - start < 1


def test_slow_readers_hold_up_only_themselves(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    with backend.forward(SOURCE) as slow:
        slow.sendall((8 * MIB).to_bytes(8, "big"))
        stream, _ = backend.connect(ECHO)
        with stream:
            stream.sendall(b"x" * 1000)
            assert receive(stream, 1000) == b"x" * 1000
        data = receive(slow, 8 * MIB)
        assert data == bytes(range(256)) * (8 * MIB // 256)


def test_slow_guest_gets_everything(machine: tuple[Backend, Vm]) -> None:
    """Odd reads leave odd amounts of room, down to a byte."""
    backend, _ = machine
    execute(
        backend,
        "import socket, threading, hashlib, time\n"
        "def once(l):\n"
        "    peer = l.accept()[0]; digest = hashlib.sha256(); time.sleep(0.2)\n"
        "    while data := peer.recv(777): digest.update(data)\n"
        "    peer.sendall(digest.hexdigest().encode()); peer.close()\n"
        "l = socket.socket(socket.AF_VSOCK); l.bind((0xffffffff, 5101)); l.listen()\n"
        "threading.Thread(target=once, args=(l,), daemon=True).start()",
    )
    data = random.Random(2).randbytes(4 * MIB)
    stream, _ = backend.connect(5101)
    with stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        assert read_all(stream).decode() == hashlib.sha256(data).hexdigest()


def test_many_connections(machine: tuple[Backend, Vm]) -> None:
    backend, _ = machine
    streams = [backend.connect(ECHO)[0] for _ in range(200)]
    for round_ in range(5):
        for number, stream in enumerate(streams):
            stream.sendall(bytes([number ^ round_]) * 4096)
        for number, stream in enumerate(streams):
            assert receive(stream, 4096) == bytes([number ^ round_]) * 4096
    for stream in streams:
        stream.close()


def test_pause_keeps_connections(machine: tuple[Backend, Vm]) -> None:
    backend, vm = machine
    stream, _ = backend.connect(ECHO)
    with stream:
        stream.sendall(b"before")
        assert receive(stream, 6) == b"before"
        for _ in range(3):
            vm.qmp("stop")
            stream.sendall(b"during")
            held = backend.forward(ECHO)
            held.sendall(b"new")
            vm.qmp("cont")
            assert receive(stream, 6) == b"during"
            with held:
                assert receive(held, 3) == b"new"
    assert backend.mappings() <= 2


def test_reset_drops_connections_and_the_next_boot_works(machine: tuple[Backend, Vm]) -> None:
    backend, vm = machine
    fds = backend.fds()
    stream, _ = backend.connect(ECHO)
    vm.qmp("system_reset")
    # Held until the next driver is there.
    vm.wait_console(b"guest: ready")
    with stream:
        assert stream.recv(1) == b""
    stream, _ = backend.connect(ECHO)
    with stream:
        stream.sendall(b"again")
        assert receive(stream, 5) == b"again"
    assert backend.fds() <= fds + 1


def test_ends_with_qemu(machine: tuple[Backend, Vm]) -> None:
    backend, vm = machine
    stream, _ = backend.connect(ECHO)
    vm.process.kill()
    with stream:
        assert stream.recv(1) == b""
    assert backend.wait() == 0


def test_hotplug(guest: vsock_guest.Guest, directory: Path) -> None:
    run = directory / "hotplug"
    run.mkdir()
    run.chmod(0o755)
    with Vm(guest, run) as vm:
        vm.wait_console(b"guest: ready")
        for round_ in range(3):
            plug = run / str(round_)
            plug.mkdir()
            plug.chmod(0o755)
            with Backend(plug, forwards=(ECHO,)) as backend, backend.forward(ECHO) as waiting:
                waiting.sendall(b"early")
                start = time.perf_counter()
                vm.plug(backend.vhost)
                added = time.perf_counter()
                assert receive(waiting, 5) == b"early"
                echoed = time.perf_counter()
                print(f"plugged in {(added - start) * 1e3:.1f} ms, echo after {(echoed - start) * 1e3:.1f} ms")
                vm.unplug()
                assert waiting.recv(1) == b""
                assert backend.wait() == 0
