"""Spans, clocks and propagation."""

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_telemetry.clock import GuestClock, HostClock
from kata_telemetry.propagation import extract, from_environment, inject
from kata_telemetry.span import MAX_EVENTS, Kind, Site, Span, SpanContext, Status, Tracer, current, use

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"


@pytest.fixture
def ended() -> list[Span]:
    return []


@pytest.fixture
def tracer(ended: list[Span]) -> Tracer:
    return Tracer("kata", ended.append, common={"source": "runtime", "sandbox_id": "s1"})


site = Site(package="test", subsystem="unit")


def test_without_a_trace_nothing_is_recorded() -> None:
    with site.span("nothing", size=1) as span:
        span.set(a=1)
        span.event("e")
        span.fail("no")
        span.link(SpanContext(1, 2))
    assert not span.recording
    assert current().recording is False
    assert inject() == []


def test_a_child_has_its_parents_trace_and_subject(tracer: Tracer, ended: list[Span]) -> None:
    with site.root(tracer, "rootSpan") as root, site.span("create", container_id="c1"), site.span("inner") as inner:
        assert current() is inner
    assert [span.name for span in ended] == ["inner", "create", "rootSpan"]
    assert inner.context.trace_id == root.context.trace_id
    assert inner.attributes == {
        "source": "runtime",
        "sandbox_id": "s1",
        "container_id": "c1",
        "package": "test",
        "subsystem": "unit",
    }
    assert ended[1].parent_id == root.context.span_id
    assert root.parent_id == 0


def test_an_absent_span_is_no_parent(tracer: Tracer) -> None:
    assert tracer.start("x", parent=current()).parent_id == 0


def test_errors_and_cancellation(tracer: Tracer, ended: list[Span]) -> None:
    with pytest.raises(RuntimeError), site.root(tracer, "fails"):
        raise RuntimeError("no disk")
    with pytest.raises(asyncio.CancelledError), site.root(tracer, "cancelled"):
        raise asyncio.CancelledError
    failed, cancelled = ended
    assert (failed.status, failed.message) == (Status.ERROR, "no disk")
    assert failed.events[0].attributes["exception.type"] == "builtins.RuntimeError"
    assert cancelled.status == Status.UNSET
    assert [event.name for event in cancelled.events] == ["cancelled"]


def test_events_are_bounded(tracer: Tracer) -> None:
    span = tracer.start("chatty")
    for number in range(MAX_EVENTS + 5):
        span.event("line", number=number)
    assert len(span.events) == MAX_EVENTS
    assert span.events_dropped == 5


def test_opened_is_told_of_every_span(ended: list[Span]) -> None:
    opened: list[str] = []
    tracer = Tracer("kata", ended.append, opened=lambda span: opened.append(span.name))
    with site.root(tracer, "rootSpan"):
        site.record("past", 1, 2)
    assert opened == ["rootSpan", "past"]
    assert ended[0].end - ended[0].start == 1


def test_finishing_twice_and_backwards(tracer: Tracer, ended: list[Span]) -> None:
    span = tracer.start("x", start=100)
    span.finish(at=50)
    span.finish(at=500)
    assert (span.start, span.end) == (100, 100)
    assert len(ended) == 1


async def test_tasks_inherit_the_current_span(tracer: Tracer) -> None:
    async def child() -> int:
        with site.span("task") as span:
            return span.parent_id

    with site.root(tracer, "rootSpan") as root:
        assert await asyncio.create_task(child()) == root.context.span_id
    with use(root):
        assert dict(inject()) == {"traceparent": root.context.to_traceparent()}
    assert not current().recording


def test_context_travels_in_metadata(tracer: Tracer) -> None:
    caller = extract([("User-Agent", "x"), ("Traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")])
    assert caller == SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 3, "a=1,b=2")
    with site.root(tracer, "create_sandbox", parent=caller, kind=Kind.SERVER) as span:
        assert dict(inject()) == {"traceparent": span.context.to_traceparent(), "tracestate": "a=1,b=2"}
        assert extract(inject()) == span.context
    assert span.parent_id == caller.span_id


def test_parent_in_the_environment() -> None:
    parent = from_environment({"TRACEPARENT": PARENT, "TRACESTATE": "a=1", "HOME": "/"})
    assert parent is not None
    assert parent.state == "a=1"
    assert from_environment({}) is None


@given(st.text() | st.binary())
def test_metadata_from_anybody(value: str | bytes) -> None:
    extract([("traceparent", value), ("tracestate", value)])


def test_host_time_goes_on_monotonically() -> None:
    clock = HostClock()
    first, second = clock.now(), clock.now()
    assert clock.to_host(second) - clock.to_host(first) == second - first


def test_each_offset_holds_from_its_reading_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = GuestClock()
    now = 100
    monkeypatch.setattr(clock, "now", lambda: now)
    assert not clock.known
    assert clock.to_host(7) == 7
    clock.set_offset(1000, 5)
    now = 200
    clock.set_offset(2000, 3)
    assert [clock.to_host(reading) for reading in (1, 100, 199, 200, 300)] == [1001, 1100, 1199, 2200, 2300]
    assert clock.bound_ns == 3
    clock.forget()
    assert not clock.known


def test_recording_imports_no_opentelemetry() -> None:
    """Tracing off, and recording itself, must not pay for the SDK; nor must logs, buffers and stores that wait."""
    code = """
import sys
import kata_telemetry.buffer, kata_telemetry.logs, kata_telemetry.propagation, kata_traces.store.writer
from kata_telemetry.span import Site, Tracer
site = Site(package="p", subsystem="s")
with site.span("off"):
    pass
with site.root(Tracer("kata", kata_telemetry.buffer.SpanBuffer().sink), "on"):
    pass
heavy = [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "google", "grpc", "rich")]
sys.exit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
