"""The store of one sandbox and its writer."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_common.files import Lock
from kata_telemetry import otlp
from kata_telemetry.span import Site, Span, SpanContext, Tracer
from kata_telemetry.wire import MAX_FRAME
from kata_traces.read.trace import load_store
from kata_traces.store import queue, scribe, store, writer
from kata_traces.store.abandoned import KILLED, close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.keep import Retention, prune
from kata_traces.store.store import Meta, Store, stores, write_meta
from kata_traces.store.writer import StoreWriter

site = Site(package="test", subsystem="unit")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[StoreWriter]:
    with StoreWriter.open(tmp_path, "s1", name="web", command="/usr/bin/nginx") as store_writer:
        yield store_writer


def spans(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            service = resource["resource"]["attributes"][0]["value"]["stringValue"]
            found += [{**span, "service": service} for scope in resource["scopeSpans"] for span in scope["spans"]]
    return found


def test_ended_spans_are_written(opened: StoreWriter) -> None:
    tracer = opened.tracer("kata", source="runtime")
    with site.root(tracer, "rootSpan") as root, site.span("create"):
        pass
    assert opened.close(5, outcome="exit 0")
    assert [span["name"] for span in spans(opened.store.spans)] == ["create", "rootSpan"]
    meta = opened.store.meta()
    assert meta.outcome == "exit 0"
    assert (meta.name, meta.command, meta.spans, meta.lost) == ("web", "nginx", 2, {})
    assert meta.trace_id == f"{root.context.trace_id:032x}"
    assert meta.root_id == f"{root.context.span_id:016x}"
    assert meta.start <= root.tracer.clock.to_host(root.start)
    assert not opened.store.open_spans.exists()
    assert not opened.store.live


def test_closing_while_the_writer_lets_spans_gather(opened: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake-up of close() must not be lost when it comes in just that moment."""
    lingering, closed = threading.Event(), threading.Event()

    class Hurry(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            lingering.set()
            return closed.wait(5) and super().wait(timeout)

        def set(self) -> None:
            super().set()
            closed.set()

    monkeypatch.setattr(opened._signals, "hurry", Hurry())
    tracer = opened.tracer("kata", source="runtime")
    site.root(tracer, "rootSpan").finish()
    opened.begin()
    assert lingering.wait(5)
    assert opened.close(2)


def test_an_open_root_is_journaled_while_the_sandbox_lives(opened: StoreWriter) -> None:
    root = site.root(opened.tracer("kata", source="runtime"), "rootSpan")
    assert opened.flush(5)
    assert opened.store.live
    assert [span["name"] for span in spans(opened.store.open_spans)] == ["rootSpan"]
    assert "endTimeUnixNano" not in spans(opened.store.open_spans)[0]
    assert opened.store.meta().root_id == f"{root.context.span_id:016x}"
    # Once is enough.
    assert opened.flush(5)
    assert len(spans(opened.store.open_spans)) == 1
    assert opened.close(5)
    assert opened.store.open_spans.exists()


def test_lasting_spans_are_journaled_without_being_asked(opened: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "LASTING", 1_000_000)
    tracer = opened.tracer("kata", source="runtime")
    root = site.root(tracer, "rootSpan")
    tracer.start("Wait", parent=root)
    opened.begin()
    seen = threading.Event()
    append = opened._scribe.lines.append

    def watch(path: Path, line: str) -> bool:
        done = append(path, line)
        if "Wait" in opened.store.open_spans.read_text():
            seen.set()
        return done

    monkeypatch.setattr(opened._scribe.lines, "append", watch)
    assert seen.wait(5)


def test_a_flood_is_bounded_and_counted(opened: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUEUE_SPANS", 10)
    tracer = opened.tracer("kata", source="runtime")
    root = site.root(tracer, "rootSpan")
    for _ in range(25):
        tracer.start("x", parent=root).finish()
    monkeypatch.undo()
    root.finish()
    assert opened.close(5)
    assert opened.store.meta().lost == {"queue full": 15}
    lost = spans(opened.store.spans)[-1]
    assert lost["name"] == "spansLost"
    assert lost["parentSpanId"] == f"{root.context.span_id:016x}"
    assert lost["status"]["message"] == "spans are missing: 15 queue full"


def test_a_full_store_is_counted(opened: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "MAX_STORE", 1000)
    with site.root(opened.tracer("kata", source="runtime"), "rootSpan"):
        for _ in range(3):
            site.record("x", 1, 2)
    assert opened.close(5)
    assert opened.store.meta().lost == {"store full or not writable": 4}


def test_a_store_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    store_writer = StoreWriter.open(tmp_path, "s1")
    for path in store_writer.store.directory.iterdir():
        path.unlink()
    store_writer.store.directory.rmdir()
    with site.root(store_writer.tracer("kata", source="runtime"), "rootSpan"):
        pass
    assert store_writer.close(5)


def test_guest_batches_end_up_beside_ours(opened: StoreWriter) -> None:
    tracer = opened.tracer("kata", source="runtime")
    agent: list[Span] = []
    with site.root(tracer, "rootSpan") as root:
        guest = Tracer("kata", agent.append, common={"sandbox_id": "another"})
        guest.start("create_sandbox", parent=SpanContext(*root.context)).finish()
        opened.write_otlp(otlp.encode(agent).data, dropped=3)
        opened.write_otlp(b"\xff" * 10)
        opened.write_otlp(bytes(MAX_FRAME + 1))
    assert opened.close(5)
    found = {span["name"]: span for span in spans(opened.store.spans)}
    assert found["create_sandbox"]["service"] == "kata-agent"
    assert {"key": "sandbox_id", "value": {"stringValue": "s1"}} in found["create_sandbox"]["attributes"]
    assert opened.store.meta().lost == {"dropped by the agent": 3, "batches from the guest, refused": 2}


def test_the_agent_alone_makes_the_trace(opened: StoreWriter) -> None:
    agent: list[Span] = []
    with site.root(Tracer("kata-agent", agent.append), "rootSpan") as root, site.span("create_sandbox"):
        pass
    opened.write_otlp(otlp.encode(agent).data)
    assert opened.close(5)
    meta = opened.store.meta()
    assert meta.trace_id == f"{root.context.trace_id:032x}"
    assert meta.root_id == f"{root.context.span_id:016x}"


def test_exporters_are_told(opened: StoreWriter) -> None:
    told = threading.Event()
    opened.on_append = told.set
    with site.root(opened.tracer("kata", source="runtime"), "rootSpan"):
        pass
    opened.begin()
    assert told.wait(5)


def test_one_writer_at_a_time(opened: StoreWriter) -> None:
    with pytest.raises(StoreError, match=r"s1.*another process"):
        StoreWriter.open(opened.store.directory.parent, "s1")


def test_a_used_name_moves_the_older_trace_aside(tmp_path: Path) -> None:
    for _ in range(3):
        StoreWriter.open(tmp_path, "s1").close(5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s1", "s1~1", "s1~2"]


def test_a_trace_is_continued_by_its_id(tmp_path: Path) -> None:
    first = StoreWriter.open(tmp_path, "s1", name="web")
    with site.root(first.tracer("kata", source="runtime"), "rootSpan") as root:
        pass
    assert first.close(5)
    with first.store.spans.open("a") as file:
        file.write('{"resourceSpans":[{"cut')
    second = StoreWriter.open(tmp_path, "s1", trace_id=root.context.trace_id)
    with site.root(second.tracer("kata", source="runtime"), "Cleanup", parent=root.context):
        pass
    assert second.close(5, outcome="killed")
    lines = first.store.spans.read_text().splitlines()
    assert len(lines) == 3
    assert "Cleanup" in lines[2]
    meta = first.store.meta()
    assert (meta.name, meta.outcome, meta.spans) == ("web", "killed", 2)
    assert meta.root_id == f"{root.context.span_id:016x}"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a~1", "x" * 300])
def test_names_that_are_no_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="can't name a trace"):
        StoreWriter.open(tmp_path, name)


def test_a_trace_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot keep a trace in .*file"):
        StoreWriter.open(tmp_path / "file", "s1")


def finished(trace_dir: Path, name: str, start: int, size: int = 10) -> Store:
    store = Store(trace_dir / name)
    store.directory.mkdir()
    write_meta(store, Meta(name, start=start))
    store.spans.write_bytes(b"x" * size)
    return store


def test_retention_by_number(tmp_path: Path) -> None:
    for number in range(6):
        finished(tmp_path, f"s{number}", start=number + 1)
    live = finished(tmp_path, "live", start=0)
    lock = Lock(live.lock_path)
    assert lock.acquire()
    assert prune(tmp_path, Retention(traces=2), keep=tmp_path / "s1") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "s1", "s4", "s5"]
    lock.release()


def test_retention_by_size(tmp_path: Path) -> None:
    for number in range(4):
        finished(tmp_path, f"s{number}", start=number + 1, size=5000)
    prune(tmp_path, Retention(size=12_000), keep=tmp_path)
    assert [store.directory.name for store in stores(tmp_path)] == ["s3", "s2"]


def test_opening_prunes(tmp_path: Path) -> None:
    finished(tmp_path, "old", start=1)
    store_writer = StoreWriter.open(tmp_path, "new", retention=Retention(traces=0))
    site.root(store_writer.tracer("kata", source="runtime"), "rootSpan")
    assert store_writer.flush(5)
    assert [store.directory.name for store in stores(tmp_path)] == ["new"]
    assert store_writer.close(5)


def test_locks_are_seen_from_elsewhere_and_end_with_their_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
import sys
from pathlib import Path
from kata_common.files import Lock
lock = Lock(Path({str(path)!r}))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert Lock.held(path)
        assert not Lock(path).acquire()
        holder.kill()
    assert not Lock.held(path)
    assert not Lock.held(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sandbox_id": 7, "start": "x", "lost": null}'])
def test_meta_of_any_kind_is_readable(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.meta_path.write_text(content)
    assert store.meta() == Meta(tmp_path.name)


@pytest.mark.slow
def test_sigkill_leaves_a_readable_store(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from kata_telemetry.wire import MAX_FRAME
from kata_telemetry.span import Site
from kata_traces.store.writer import StoreWriter
site = Site(package="t", subsystem="t")
writer = StoreWriter.open(Path({str(tmp_path)!r}), "s1")
with site.root(writer.tracer("kata", source="runtime"), "rootSpan"):
    with site.span("create"):
        pass
    writer.flush(10)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    store = Store(tmp_path / "s1")
    assert not store.live
    assert [span["name"] for span in spans(store.spans)] == ["create"]
    assert [span["name"] for span in spans(store.open_spans)] == ["rootSpan"]
    assert store.meta().outcome == ""


def test_on_a_full_disk_the_end_is_known_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old meta.json has its place on the disk; a new one beside it would need more."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = Store(tmp_path)
    write_meta(kept, Meta("s1", name="a long name, which leaves no rest"))
    monkeypatch.setattr(store, "write_atomically", full)
    store.save_meta(kept, Meta("s1", outcome="exit 0"))
    assert (kept.meta().outcome, kept.meta().name) == ("exit 0", "")


def test_a_writer_shows_that_it_lives(opened: StoreWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the end of one that is killed is known, although nothing was written then."""
    alive = threading.Event()

    def touch(path: Path) -> None:
        if path == opened.store.lock_path:
            alive.set()

    monkeypatch.setattr(writer, "HEARTBEAT", 1_000_000)
    monkeypatch.setattr(os, "utime", touch)
    with site.root(opened.tracer("kata", source="runtime"), "rootSpan"):
        opened.begin()
        assert alive.wait(5)


def test_a_killed_writer_ended_when_it_last_showed_that_it_lived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StoreWriter.open(tmp_path, "s1") as opened:
        site.root(opened.tracer("kata", source="runtime"), "rootSpan")
        opened.flush(5)
    kept = Store(tmp_path / "s1")
    meta = kept.meta()
    meta.outcome = ""
    write_meta(kept, meta)
    at = meta.start + 12_000_000_000
    os.utime(kept.lock_path, ns=(at, at))
    later = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert close_abandoned(kept)
    trace = load_store(kept)
    assert trace is not None
    assert trace.root.end == at
    assert trace.meta.outcome == KILLED
