"""Export to collectors that behave, misbehave, and that we did not write."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from kata_common.files import Lock
from kata_telemetry import otlp
from kata_telemetry.span import Site
from kata_traces.send import delivery as export
from kata_traces.send.collector import UnavailableError
from kata_traces.send.connect import connect
from kata_traces.send.delivery import push
from kata_traces.send.ledger import load_progress
from kata_traces.send.settings import CollectorSettings, Given
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store
from kata_traces.store.writer import StoreWriter
from support.collectors import Collected, free_port, grpc_collector, http_collector
from support.rotel import rotel

site = Site(package="test", subsystem="contract")
Fake = Callable[..., AbstractContextManager[Collected]]
FAKES = [pytest.param(grpc_collector, "grpc", id="grpc"), pytest.param(http_collector, "http/protobuf", id="http")]


def settings(endpoint: str, protocol: str, **more: str) -> CollectorSettings:
    found = CollectorSettings.resolve(more, Given(endpoint, protocol))
    assert found is not None
    return found


def write(trace_dir: Path, *lines: str) -> Store:
    """A finished trace with one line per name."""
    writer = StoreWriter.open(trace_dir, "s1")
    tracer = writer.tracer("kata", source="runtime")
    root = site.root(tracer, "rootSpan")
    for name in lines:
        tracer.start(name, parent=root).finish()
        assert writer.flush(10)
    assert writer.close(10)
    return writer.store


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_push_delivers_once(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a", "b", "c")
    with fake() as collected:
        to = settings(collected.endpoint, protocol, OTEL_EXPORTER_OTLP_HEADERS="tenant=a%20b")
        result = push(store, to)
        assert result.complete
        assert (result.spans, result.left, result.refused, result.error) == (3, 0, 0, "")
        assert push(store, to).spans == 0
        assert collected.names == ["a", "b", "c"]
        assert collected.headers[0]["tenant"] == "a b"
    assert load_progress(store)[to.target].offset == store.spans.stat().st_size


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_push_compressed(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a")
    with fake() as collected:
        assert push(store, settings(collected.endpoint, protocol, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")).complete
        if protocol == "http/protobuf":
            assert collected.headers[0]["content-encoding"] == "gzip"
        else:
            assert collected.names == ["a"]


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_push_goes_on_where_it_stopped(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a", "b", "c")
    with fake("ok", "busy") as collected:
        first = push(store, settings(collected.endpoint, protocol))
        assert not first.complete
        assert first.spans == 1
        assert first.left > 0
        assert re.search("503|come back later", first.error)
        assert push(store, settings(collected.endpoint, protocol)).complete
        assert collected.names == ["a", "b", "c"]


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_a_refused_batch_blocks_nothing_and_is_kept(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a", "b", "c")
    with fake("ok", "bad") as collected:
        first = push(store, settings(collected.endpoint, protocol))
        assert (first.spans, first.left, first.refused) == (2, 0, 1)
        assert not first.complete
        assert collected.names == ["a", "c"]
        assert push(store, settings(collected.endpoint, protocol)).complete
        assert collected.names == ["a", "c", "b"]


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_partial_success_is_not_sent_again(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a", "b")
    with fake("partial") as collected:
        result = push(store, settings(collected.endpoint, protocol))
        assert (result.spans, result.rejected, result.left) == (1, 1, 0)
        assert collected.names == ["a", "b"]


@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_a_hanging_collector_is_given_up(tmp_path: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a")
    with fake("hang") as collected:
        result = push(store, settings(collected.endpoint, protocol), timeout=0.2)
        assert result.spans == 0
        assert result.left > 0
        assert result.error


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_nobody_listens(tmp_path: Path, protocol: str) -> None:
    store = write(tmp_path, "a")
    result = push(store, settings(f"http://127.0.0.1:{free_port()}", protocol))
    assert "refused" in result.error.lower()
    assert result.left > 0


def test_each_collector_gets_everything(tmp_path: Path) -> None:
    store = write(tmp_path, "a")
    with http_collector() as first, http_collector() as second:
        for collected in (first, second):
            assert push(store, settings(collected.endpoint, "http/protobuf")).spans == 1


def test_a_line_cut_off_by_a_crash(tmp_path: Path) -> None:
    store = write(tmp_path, "a")
    whole = store.spans.read_bytes()
    store.spans.write_bytes(b'{"resourceSpans":[{"cu\n' + whole + whole[: len(whole) // 2])
    with http_collector() as collected:
        assert push(store, settings(collected.endpoint, "http/protobuf")).complete
        assert collected.names == ["a"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    store = write(tmp_path, "a")
    lock = Lock(store.export_lock_path)
    assert lock.acquire()
    with pytest.raises(StoreError, match="another process"):
        push(store, settings("http://127.0.0.1:1", "grpc"))
    lock.release()
    with pytest.raises(StoreError, match="no trace in"):
        push(Store(tmp_path / "nothing"), settings("http://127.0.0.1:1", "grpc"))


def reap(link: export.Link) -> int:
    """Wait for the exporter's end."""
    if link._reaped:
        return 0
    _, status = os.waitpid(link.pid, 0)
    link._reaped = True
    return os.waitstatus_to_exitcode(status)


def record(writer: StoreWriter, *names: str) -> None:
    tracer = writer.tracer("kata", source="runtime")
    for name in names:
        tracer.start(name).finish()


@pytest.mark.slow
@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_the_exporter_delivers_while_the_sandbox_lives(tmp_path: Path, fake: Fake, protocol: str) -> None:
    with fake() as collected, StoreWriter.open(tmp_path, "s1") as writer:
        link = export.start(writer.store, [settings(collected.endpoint, protocol)])
        writer.on_append = link.notify
        record(writer, "a")
        assert writer.flush(10)
        assert collected.wait(lambda c: c.names == ["a"])
        record(writer, "b")
        assert writer.close(10)
        link.close()
        assert reap(link) == 0
        assert collected.names == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_the_exporter_tries_again(tmp_path: Path, fake: Fake, protocol: str) -> None:
    with fake("busy", "bad", "busy") as collected, StoreWriter.open(tmp_path, "s1") as writer:
        record(writer, "a")
        assert writer.flush(10)
        record(writer, "b")
        assert writer.close(10)
        link = export.start(writer.store, [settings(collected.endpoint, protocol)])
        link.close()
        assert reap(link) == 75  # one batch was refused
        assert collected.names == ["b"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_exporter_waits_for_a_collector_that_comes_late(tmp_path: Path, protocol: str) -> None:
    port = free_port()
    with StoreWriter.open(tmp_path, "s1") as writer:
        to = settings(f"http://127.0.0.1:{port}", protocol)
        link = export.start(writer.store, [to])
        writer.on_append = link.notify
        record(writer, "a")
        assert writer.flush(10)
        wait_for_error(writer.store, to)
        fake = grpc_collector if protocol == "grpc" else http_collector
        with fake(port=port) as collected:
            record(writer, "b")
            assert writer.close(10)
            link.close()
            assert reap(link) == 0
            assert sorted(collected.names) == ["a", "b"]


def wait_for_error(store: Store, to: CollectorSettings) -> None:
    """Until the exporter has noted that it failed once: its own note is the only sign of that."""
    deadline = time.monotonic() + 20
    while to.target not in (found := load_progress(store)) or not found[to.target].error:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_a_hanging_collector_delays_nobody(tmp_path: Path, fake: Fake, protocol: str) -> None:
    with fake("hang") as collected, StoreWriter.open(tmp_path, "s1") as writer:
        link = export.start(writer.store, [settings(collected.endpoint, protocol)], grace=0.5)
        writer.on_append = link.notify
        record(writer, "a")
        assert writer.flush(10)
        assert collected.wait(lambda c: bool(c.headers))
        begin = time.monotonic()
        record(writer, "b")
        assert writer.close(10)
        link.close()
        assert time.monotonic() - begin < 0.5
        assert reap(link) == 75
        assert time.monotonic() - begin < 3
        collected.released.set()
        # At least once: nobody knows what a collector that did not answer has kept.
        assert push(writer.store, settings(collected.endpoint, protocol)).complete
        assert collected.names == ["a", "b"]


@pytest.mark.slow
def test_an_exporter_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with http_collector("busy") as collected, StoreWriter.open(tmp_path, "s1") as writer:
        to = settings(collected.endpoint, "http/protobuf")
        link = export.start(writer.store, [to])
        writer.on_append = link.notify
        record(writer, "a")
        assert writer.flush(10)
        assert collected.wait(lambda c: bool(c.headers))
        os.kill(link.pid, 9)
        assert reap(link) == -9
        record(writer, "b")
        assert writer.close(10)
        first = link.pid
        link._reaped = False
        dead = subprocess.Popen(["false"])  # in its place: the test has reaped the real one
        link.pid = dead.pid
        assert os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        link.close()
        assert link.pid not in (first, dead.pid)
        dead.returncode = 1
        assert reap(link) == 0
        assert collected.names == ["a", "b"]


@pytest.mark.slow
def test_an_exporter_takes_along_what_the_collector_missed(tmp_path: Path) -> None:
    port = free_port()
    to = settings(f"http://127.0.0.1:{port}", "grpc")
    missed = StoreWriter.open(tmp_path, "missed")
    record(missed, "missed")
    assert missed.close(10)
    assert push(missed.store, to).spans == 0
    other = StoreWriter.open(tmp_path, "not meant for it")
    record(other, "other")
    assert other.close(10)
    with grpc_collector(port=port) as collected, StoreWriter.open(tmp_path, "s1") as writer:
        record(writer, "a")
        assert writer.close(10)
        link = export.start(writer.store, [to])
        link.close()
        assert reap(link) == 0
        assert collected.names == ["a", "missed"]
        assert push(missed.store, to).spans == 0


@pytest.mark.slow
def test_a_name_that_is_used_again_does_not_mislead_the_exporter(tmp_path: Path) -> None:
    with http_collector("busy") as collected:
        to = settings(collected.endpoint, "http/protobuf")
        old = write(tmp_path, "old")
        link = export.start(old, [to])
        assert collected.wait(lambda c: bool(c.headers))
        new = write(tmp_path, "new")
        assert new.directory == old.directory
        link.close()
        assert reap(link) == 0
        assert collected.names == ["old"]
        assert load_progress(new) == {}


@pytest.mark.slow
def test_bad_settings_end_the_exporter_with_a_message(tmp_path: Path) -> None:
    store = write(tmp_path, "a")
    command = [sys.executable, "-m", "kata_traces.send.exporter", "--store", str(store.directory)]

    def run(**variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    done = run(OTEL_EXPORTER_OTLP_ENDPOINT="ftp://c")
    assert done.returncode == 64
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: 'ftp://c' is no URL" in done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in run().stderr
    lock = Lock(store.export_lock_path)
    assert lock.acquire()
    done = run(OTEL_EXPORTER_OTLP_ENDPOINT="http://c:1")
    assert done.returncode == 64
    assert f"{store.directory} is being exported by another process" in done.stderr
    lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_we_did_not_write(tmp_path: Path, protocol: str) -> None:
    log = tmp_path / "rotel.log"
    with rotel(log) as endpoints, StoreWriter.open(tmp_path, "s1") as writer:
        link = export.start(writer.store, [settings(endpoints[protocol], protocol)])
        writer.on_append = link.notify
        tracer = writer.tracer("kata", source="runtime")
        with site.root(tracer, "rootSpan") as root:
            with site.span("StartVM", accelerator="tcg") as span:
                span.event("greeting")
            with contextlib.suppress(OSError), site.span("createSandbox"):
                raise OSError("no space")
        assert writer.close(10)
        link.close()
        assert reap(link) == 0
    text = log.read_text()
    for expected in (
        f"{root.context.trace_id:032x}",
        f"{root.context.span_id:016x}",
        "rootSpan",
        "StartVM",
        "no space",
        "greeting",
    ):
        assert expected in text, text[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("fake", "protocol"), FAKES)
def test_a_collector_that_wants_to_see_a_certificate(tmp_path: Path, pki: Path, fake: Fake, protocol: str) -> None:
    store = write(tmp_path, "a")
    files: dict[str, Any] = {"certificate": str(pki / "ca.pem")}
    mine: dict[str, Any] = {"client_certificate": str(pki / "client.pem"), "client_key": str(pki / "client.key")}
    with fake(tls=pki) as collected:
        without = CollectorSettings.resolve({}, Given(collected.endpoint, protocol, **files))
        stranger = CollectorSettings.resolve({}, Given(collected.endpoint, protocol, **mine))
        right = CollectorSettings.resolve({}, Given(collected.endpoint, protocol, **files, **mine))
        assert without
        assert stranger
        assert right
        assert push(store, without, timeout=2).spans == 0
        assert push(store, stranger, timeout=2).spans == 0
        assert push(store, right).complete
        # The exporter gets them by its environment.
        again = CollectorSettings.resolve(right.environment())
        assert again == right
        assert collected.names == ["a"]


def test_a_collector_says_when_to_come_again(tmp_path: Path) -> None:
    store = write(tmp_path, "a")
    with grpc_collector("later") as collected:
        to = settings(collected.endpoint, "grpc")
        sender = connect(to)
        with pytest.raises(UnavailableError) as caught:
            sender.send(otlp.from_line(store.spans.read_bytes()), 10)
        sender.close()
        assert caught.value.retry_after == 7.5
