"""OpenTelemetry's SDK and other people's packages for it in a real run."""

import contextlib
import os
import select
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_traces.read.trace import load_store
from kata_traces.send.ledger import load_progress
from kata_traces.store.store import Store
from support.kata import Kata
from support.packages import install
from support.running import Running

pytestmark = pytest.mark.vm

# As instrumentation does it: a function of a library, wrapped from outside before anything runs.
INSTRUMENTED = """
import socket

connect = socket.socket.connect

def traced(self, address):
    from opentelemetry import trace

    with trace.get_tracer("instrumented", "3.2").start_as_current_span("socket.connect") as span:
        span.set_attribute("net.sock.family", self.family.name)
        span.set_attribute("seen", f"{trace.get_current_span().get_span_context().span_id:016x}")
        return connect(self, address)

socket.socket.connect = traced
"""


@pytest.fixture
def packages(kata: Kata, tmp_path: Path) -> Path:
    """The directory of the package, and where its exporter writes."""
    directory = tmp_path / "site"
    directory.mkdir()
    install(directory)
    # A caller's PYTHONPATH is not listened to; this is as if the package were installed where the product is.
    kata.prologue = f"import sys; sys.path.append({str(directory)!r})\n"
    kata.environment |= {
        "SPANS_TO": str(tmp_path / "filed"),
        "SPANS_AWAY": str(tmp_path / "away"),
        "OTEL_TRACES_EXPORTER": "filed",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "6",
        "KATA_SPAN_PROCESSORS": "marking",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "rack,otel",
    }
    return tmp_path / "filed"


def exporters(store: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"kata_traces.send.exporter" in words and str(store).encode() in words:
                yield int(entry.name)


def await_end_of_exporter(store: Path) -> None:
    for pid in exporters(store):
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            assert select.select([fd], [], [], 30)[0]
            os.close(fd)


def test_another_packages_exporter_gets_each_span_once_though_it_is_killed(kata: Kata, packages: Path) -> None:
    kata.tracing(runtime=True, agent=True)
    with Running.shell(kata, "killed") as running:
        [directory] = [path for path in kata.trace_dir.iterdir() if path.is_dir()]
        for _ in range(2):
            for pid in list(exporters(directory)):
                os.kill(pid, signal.SIGKILL)
            running("true")
        assert running.finish()[0] == 0
    await_end_of_exporter(directory)
    trace = load_store(Store(directory))
    assert trace is not None
    assert trace.meta.lost == {}
    lines = [line.split() for line in packages.read_text().splitlines()]
    assert Counter(line[0] for line in lines) == Counter(span.span_id for span in trace.spans)
    assert {line[-2] for line in lines} == {"test"}
    assert max(int(line[-1]) for line in lines) == 6
    assert {span.service for span in trace.spans} == {"kata", "kata-agent"}
    for span in trace.spans:
        assert len(span.attributes) <= 6
        assert span.attributes["marked"] is True
        assert span.attributes["sandbox_id"] == trace.meta.sandbox_id
    stored = (directory / "spans.jsonl").read_text()
    assert stored.count('"deployment.environment"') == stored.count('"rack"') == stored.count('"service.name"')
    [progress] = load_progress(Store(directory)).values()
    assert progress.spans == len(trace.spans)


def test_an_instrumented_library_is_in_the_trace(kata: Kata) -> None:
    kata.prologue = INSTRUMENTED
    kata.tracing(runtime=True, agent=True).run("true")
    [found] = [path for path in kata.trace_dir.iterdir() if path.is_dir()]
    trace = load_store(Store(found))
    assert trace is not None
    assert trace.orphans == []
    theirs = [span for span in trace.spans if span.name == "socket.connect"]
    assert theirs
    for span in theirs:
        assert span.parent is not None
        assert span.attributes["seen"] == span.span_id
        assert span.service == "kata"
    assert '{"name":"instrumented","version":"3.2"}' in (found / "spans.jsonl").read_text()
