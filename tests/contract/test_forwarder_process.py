"""`kata-trace-forwarder` as a process: collectors that are away, its end, and guests that lie to it."""

import contextlib
import itertools
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata_common.contract import Port
from kata_telemetry import otlp
from kata_telemetry.clock import HostClock
from kata_telemetry.wire import MAX_FRAME, NUMBER, frame
from kata_traces.forwarder.courier import left
from kata_traces.send.delivery import push
from kata_traces.send.settings import CollectorSettings
from kata_traces.store.announce import Announcement
from kata_traces.store.store import Store
from support.collectors import free_port, grpc_collector
from support.forwarder import Guest, batch, span_names
from support.forwarder_process import PROGRAM, forwarder_process
from support.rotel import rotel

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


class Sandboxes:
    """What a runtime makes for a sandbox, ready before the forwarder starts."""

    def __init__(self, directory: Path) -> None:
        self.run, self.traces = directory / "run", directory / "traces"

    def add(self, sandbox_id: str) -> bytes:
        trace_id = sandbox_id.encode().ljust(16, b"\1")[:16]
        (self.run / sandbox_id / "ports").mkdir(parents=True)
        self.store(sandbox_id).directory.mkdir(parents=True)
        Announcement(
            sandbox_id,
            str(self.store(sandbox_id).directory),
            since=time.time_ns(),
            clock_offset=HostClock().to_host(0),
            trace_id=trace_id.hex(),
            root_id=(b"R" * 8).hex(),
        ).write(self.run / sandbox_id)
        return trace_id

    def store(self, sandbox_id: str) -> Store:
        return Store(self.traces / sandbox_id)

    def guest(self, sandbox_id: str) -> Guest:
        return Guest(self.run / sandbox_id / "ports" / f"vsock.sock_{Port.FORWARDER}")

    def options(self, endpoint: str) -> list[str]:
        return ["--run-dir", str(self.run), "--trace-dir", str(self.traces), "--otlp-endpoint", endpoint]


def settings(endpoint: str) -> CollectorSettings:
    return CollectorSettings(endpoint, "grpc")


def test_a_collector_that_is_away_and_comes(tmp_path: Path) -> None:
    sandboxes, port = Sandboxes(tmp_path), free_port()
    endpoint = f"http://127.0.0.1:{port}"
    ids = [f"s{number}" for number in range(20)]
    traces = {sandbox_id: sandboxes.add(sandbox_id) for sandbox_id in ids}
    with forwarder_process(tmp_path / "log", *sandboxes.options(endpoint)) as forwarder:
        for sandbox_id, trace_id in traces.items():
            with sandboxes.guest(sandbox_id) as guest:
                guest.send(batch(trace_id, f"{sandbox_id} a"), batch(trace_id, f"{sandbox_id} b"))
                guest.confirmed(2)
        with grpc_collector(port=port) as collected:
            expected = sorted(f"{sandbox_id} {which}" for sandbox_id in ids for which in "ab")
            assert collected.wait(lambda c: sorted(c.names) == expected, 40)
            assert forwarder.stop() == 0
            assert sorted(collected.names) == expected
    text = (tmp_path / "log").read_text()
    assert text.count("takes no spans, they are kept") == 1
    assert "takes spans again" in text


def test_its_end_sends_what_there_is(tmp_path: Path) -> None:
    sandboxes = Sandboxes(tmp_path)
    trace_id = sandboxes.add("s1")
    with (
        grpc_collector("busy") as collected,
        forwarder_process(tmp_path / "log", *sandboxes.options(collected.endpoint)) as forwarder,
        sandboxes.guest("s1") as guest,
    ):
        guest.send(*(batch(trace_id, f"{number}") for number in range(50)))
        guest.confirmed(50)
        assert forwarder.stop(signal.SIGINT) == 0
        assert collected.names == [f"{number}" for number in range(50)]
    assert not list(sandboxes.run.glob("s1/ports/*"))


def test_killed_and_started_again(tmp_path: Path) -> None:
    sandboxes, port = Sandboxes(tmp_path), free_port()
    trace_id = sandboxes.add("s1")
    options = sandboxes.options(f"http://127.0.0.1:{port}")
    with forwarder_process(tmp_path / "log", *options) as forwarder, sandboxes.guest("s1") as guest:
        guest.send(batch(trace_id, "before"))
        guest.confirmed(1)
        assert forwarder.stop(signal.SIGKILL) == -signal.SIGKILL
    with grpc_collector(port=port) as collected, forwarder_process(tmp_path / "log", *options) as forwarder:
        assert collected.wait(lambda c: c.names == ["before"], 40)
        with sandboxes.guest("s1") as guest:
            guest.send(batch(trace_id, "after"))
            guest.confirmed(1)
        assert forwarder.stop() == 0
        assert collected.names == ["before", "after"]


def test_what_it_left_is_pushed(tmp_path: Path) -> None:
    sandboxes, port = Sandboxes(tmp_path), free_port()
    trace_id = sandboxes.add("s1")
    endpoint = f"http://127.0.0.1:{port}"
    with forwarder_process(tmp_path / "log", *sandboxes.options(endpoint)) as forwarder, sandboxes.guest("s1") as guest:
        guest.send(batch(trace_id, "kept"))
        guest.confirmed(1)
        begin = time.monotonic()
        assert forwarder.stop() == 0
        assert time.monotonic() - begin < 20
    assert "not forwarded yet" in (tmp_path / "log").read_text()
    with grpc_collector(port=port) as collected:
        assert push(sandboxes.store("s1"), settings(endpoint)).complete
        assert push(sandboxes.store("s1"), settings(endpoint)).spans == 0
        assert collected.names == ["kept"]
    assert left(sandboxes.store("s1"), settings(endpoint)) == 0


def test_a_collector_that_we_did_not_write(tmp_path: Path) -> None:
    sandboxes, log = Sandboxes(tmp_path), tmp_path / "rotel.log"
    trace_id = sandboxes.add("s1")
    with rotel(log) as endpoints:
        options = [*sandboxes.options(endpoints["grpc"]), "--trace-name", "my-agent", "-l", "trace"]
        with forwarder_process(tmp_path / "log", *options) as forwarder, sandboxes.guest("s1") as guest:
            guest.send(batch(trace_id, "create_sandbox"))
            guest.confirmed(1)
            assert forwarder.stop() == 0
    assert trace_id.hex() in log.read_text()
    assert "create_sandbox" in log.read_text()
    assert "my-agent" in log.read_text()
    assert "batch received" in (tmp_path / "log").read_text()


def test_dump_only(tmp_path: Path) -> None:
    sandboxes = Sandboxes(tmp_path)
    trace_id = sandboxes.add("s1")
    command = [str(PROGRAM), "--dump-only", *sandboxes.options("http://127.0.0.1:1")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stdout
        for line in process.stderr:
            if b"msg=ready" in line:
                break
        with sandboxes.guest("s1") as guest:
            guest.send(batch(trace_id, "shown"))
            assert b'"name":"shown"' in process.stdout.readline()
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    assert list(sandboxes.store("s1").directory.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--otlp-endpoint", "localhost:4317"], 64, "is no URL"),
        (["--socket-path", "here/{ID}"], 64, "is no absolute path"),
        (["--vsock-cid", "everyone"], 2, "is no context id"),
        (["-l", "loud"], 2, "invalid choice"),
        (["--run-dir", "/proc/nowhere"], 1, "/proc/nowhere"),
    ],
)
def test_options_that_can_not_work(arguments: list[str], status: int, said: str) -> None:
    done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# Guests that lie. Each sends for as long as it is listened to.


def forged(trace_id: bytes, other: bytes) -> Iterator[bytes]:
    yield frame(batch(other, *["forged"] * 200))
    for start in (1, 4_102_444_800_000_000_000):  # 1970, 2100
        yield frame(batch(trace_id, {"start_time_unix_nano": start, "end_time_unix_nano": start + 1}))
    request = otlp.parse(batch(trace_id, "forged service"))
    pair = request.resource_spans[0].resource.attributes.add(key="service.name")
    pair.value.string_value = "kata"
    yield frame(request.SerializeToString())


def a_million_spans(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    for _number in range(1000):
        spans = [{"span_id": secrets.token_bytes(8), "name": "s"} for _ in range(20)]
        one = batch(trace_id, *spans)
        # Protocol buffers merge by being joined.
        yield frame(one * min(50, MAX_FRAME // len(one)))


def gigantic_attributes(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    for number in range(200):
        request = otlp.parse(batch(trace_id, f"big {number}"))
        span = request.resource_spans[0].scope_spans[0].spans[0]
        for key in range(20):
            span.attributes.add(key=f"k{key}").value.string_value = "x" * 10_000
        yield frame(request.SerializeToString())


def empty_spans(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    one = otlp.parse(b"")
    scope = one.resource_spans.add().scope_spans.add()
    for _number in range(80_000):
        scope.spans.add()
    data = one.SerializeToString()
    assert len(data) <= MAX_FRAME
    yield from itertools.repeat(frame(data), 20)


def never_ending_frame(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    yield NUMBER.pack(MAX_FRAME)
    yield from itertools.repeat(b"x" * 1000, 200)  # the last bytes never come


def too_long_frame(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    yield NUMBER.pack(2**63)
    yield from itertools.repeat(b"x" * 65536, 100)


def noise(trace_id: bytes, _: bytes) -> Iterator[bytes]:
    source = random.Random(7)
    for _number in range(300):
        yield frame(source.randbytes(source.randrange(5000)))


LIARS: list[Callable[[bytes, bytes], Iterator[bytes]]] = [
    forged, a_million_spans, gigantic_attributes, empty_spans, never_ending_frame, too_long_frame, noise,
]  # fmt: skip


def lie(guest: Guest, chunks: Iterator[bytes]) -> None:
    """Until all is said, or the forwarder hangs up, or no longer listens."""
    with contextlib.suppress(OSError):
        for chunk in chunks:
            guest.socket.settimeout(5)
            guest.socket.sendall(chunk)
            guest.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while guest.socket.recv(4096):
                    pass


def test_guests_that_lie(tmp_path: Path) -> None:
    """All at once, four connections each, and an honest one beside them."""
    sandboxes = Sandboxes(tmp_path)
    honest = sandboxes.add("honest")
    traces = {liar.__name__: sandboxes.add(liar.__name__.replace("_", "-")) for liar in LIARS}
    with grpc_collector() as collected:
        with forwarder_process(tmp_path / "log", *sandboxes.options(collected.endpoint)) as forwarder:
            with sandboxes.guest("honest") as guest:
                guest.send(batch(honest, "first"))
                guest.confirmed(1)
                before = forwarder.rss()
                threads: list[threading.Thread] = []
                guests: list[Guest] = []
                for liar in LIARS:
                    for _ in range(4):
                        guests.append(sandboxes.guest(liar.__name__.replace("_", "-")))
                        chunks = liar(traces[liar.__name__], honest)
                        threads.append(threading.Thread(target=lie, args=(guests[-1], chunks)))
                for thread in threads:
                    thread.start()
                for number in range(20):
                    guest.send(batch(honest, f"honest {number}"))
                    guest.confirmed(2 + number)
                for thread in threads:
                    thread.join(120)
                for each in guests:
                    each.close()
                peak = forwarder.peak()
            assert forwarder.stop() == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
        print(f"resident before {before / MIB:.0f} MiB, at most {peak / MIB:.0f} MiB")
        # 28 connections of seven guests: 4.4 MiB of ids per guest, 320 KiB per connection, one parsed batch of 22 MiB.
        assert peak - before < 128 * MIB
        assert span_names(sandboxes.store("honest")) == ["first", *(f"honest {number}" for number in range(20))]
        for liar in LIARS:
            store = sandboxes.store(liar.__name__.replace("_", "-"))
            assert store.size() < 40 * MIB
            for data in collected.requests:
                for resource in otlp.parse(data).resource_spans:
                    services = {pair.value.string_value for pair in resource.resource.attributes}
                    assert "kata" not in services
        lost = sandboxes.store("forged").meta().lost
        assert lost["from the guest, refused: another trace"] >= 200
        assert lost["from the guest, refused: before the sandbox began"] >= 1
        assert sandboxes.store("a-million-spans").meta().spans <= 20_000


RUNTIME = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from contract.test_forwarder_process import LIARS
from kata_telemetry import otlp
from kata_telemetry.span import Site
from kata_telemetry.wire import Frames
from kata_traces.store.writer import StoreWriter
otlp.preload()
trace_id = b"T" * 16
writer = StoreWriter.open(Path(sys.argv[1]), "s1", trace_id=int.from_bytes(trace_id, "big"))
writer.begin()
peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM:')).split()[1])
before = peak()
for liar in LIARS:
    frames = Frames(1 << 30)
    for chunk in liar(trace_id, b"X" * 16):
        if liar.__name__ == "too_long_frame":
            writer.write_otlp(chunk)
            continue
        for payload in frames.feed(chunk):
            writer.write_otlp(payload)
            if writer._queue.bytes > 2 << 20:
                writer.flush(60)  # a writer that can't follow would drop the most of it unseen
assert writer.close(60, outcome="over")
print(peak() - before)
"""


def test_the_same_lies_to_the_runtime(tmp_path: Path) -> None:
    """The other way of an agent's spans: StreamSpans, and the store's writer in the runtime's process."""
    command = [sys.executable, "-c", RUNTIME, str(tmp_path), str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) * 1024
    print(f"grown by {grown / MIB:.0f} MiB")
    assert grown < 128 * MIB
    store = Store(tmp_path / "s1")
    assert store.size() < 70 * MIB
    assert store.meta().spans <= 20_001  # one tells what was lost


def test_a_socket_that_another_process_serves_is_left_alone(tmp_path: Path) -> None:
    sandboxes = Sandboxes(tmp_path)
    sandboxes.add("s1")
    path = sandboxes.run / "s1" / "ports" / f"vsock.sock_{Port.FORWARDER}"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        with forwarder_process(tmp_path / "log", *sandboxes.options("http://127.0.0.1:1")) as forwarder:
            assert forwarder.stop() == 0
        assert path.exists()
    assert "nothing can be listened at" in (tmp_path / "log").read_text()
