"""Batches from hostile guests."""

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_telemetry import otlp
from kata_telemetry.wire import MAX_FRAME
from kata_traces.store.quarantine import Limits, Quarantine

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE = b"T" * 16
ROOT = b"R" * 8


def quarantine(**limits: int) -> Quarantine:
    return Quarantine("s1", since=time.time_ns(), trace_id=TRACE, root_id=ROOT, limits=Limits(**limits))


def batch(*spans: dict[str, Any]) -> bytes:
    request = otlp.parse(b"")
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "kata"
    scope = resource.scope_spans.add()
    for number, fields in enumerate(spans, 1):
        now = time.time_ns()
        base = {
            "trace_id": TRACE,
            "span_id": number.to_bytes(8, "big"),
            "parent_span_id": ROOT,
            "name": "create_sandbox",
            "kind": 2,
            "start_time_unix_nano": now,
            "end_time_unix_nano": now,
        }
        scope.spans.add(**(base | fields))
    return request.SerializeToString()


def rebuilt(guard: Quarantine, *spans: dict[str, Any]) -> "list[Span]":
    request = guard.rebuild(batch(*spans))
    return list(request.resource_spans[0].scope_spans[0].spans) if request else []


def test_a_good_span_passes_whole() -> None:
    guard = quarantine()
    (span,) = rebuilt(guard, {"flags": 0x301, "status": {"code": 2, "message": "no such file"}})
    assert (span.name, span.kind, span.flags, span.status.message) == ("create_sandbox", 2, 0x301, "no such file")
    assert guard.tally.accepted == 1
    assert guard.tally.rejected == guard.tally.trimmed == guard.tally.batches == 0


def test_the_service_is_forced() -> None:
    request = quarantine().rebuild(batch({}))
    assert request is not None
    attributes = {pair.key: pair.value.string_value for pair in request.resource_spans[0].resource.attributes}
    assert attributes["service.name"] == "kata-agent"
    assert attributes["sandbox_id"] == "s1"


@pytest.mark.parametrize(
    "forged",
    [
        {"trace_id": b"X" * 16},
        {"trace_id": b""},
        {"trace_id": bytes(16)},
        {"span_id": b""},
        {"span_id": bytes(8)},
        {"span_id": b"123456789"},
        {"span_id": ROOT},
        {"span_id": b"H" * 8},
        {"parent_span_id": b"short"},
        {"start_time_unix_nano": 0},
        {"start_time_unix_nano": 1, "end_time_unix_nano": 2},
        {"end_time_unix_nano": 2**64 - 1},
        {"start_time_unix_nano": time.time_ns() + 10**15, "end_time_unix_nano": time.time_ns() + 10**15},
        {"end_time_unix_nano": time.time_ns() - 1_000_000_000},
    ],
)
def test_forged_spans_are_refused(forged: dict[str, Any]) -> None:
    guard = quarantine()
    guard.claim(int.from_bytes(b"H" * 8, "big"))
    assert rebuilt(guard, forged) == []
    assert guard.tally.rejected == 1


def test_an_id_is_used_once() -> None:
    guard = quarantine()
    assert len(rebuilt(guard, {"span_id": b"12345678"}, {"span_id": b"12345678"})) == 1
    assert rebuilt(guard, {"span_id": b"12345678"}) == []
    assert guard.tally.rejected == 2


def test_no_second_root() -> None:
    guard = quarantine()
    (span,) = rebuilt(guard, {"parent_span_id": b"", "name": "rootSpan"})
    assert span.parent_span_id == ROOT
    assert guard.tally.trimmed == 1


def test_first_span_of_an_agent_alone_sets_trace_and_root() -> None:
    guard = Quarantine("s1", since=time.time_ns())
    spans = rebuilt(guard, {"parent_span_id": b"12345678"}, {"parent_span_id": b""}, {"trace_id": b"Y" * 16})
    assert len(spans) == 2
    assert (guard.trace_id, guard.root_id) == (TRACE, (2).to_bytes(8, "big"))


def test_names_and_attributes_are_bounded_and_harmless() -> None:
    guard = quarantine(attributes=4, text=50)
    attributes = [
        {"key": "source", "value": {"string_value": "runtime"}},
        {"key": "sandbox_id", "value": {"string_value": "other"}},
        {"key": "long", "value": {"string_value": "x" * 1000}},
        {"key": "nested", "value": {"array_value": {"values": [{"int_value": 1}]}}},
        {"key": "nan", "value": {"double_value": float("nan")}},
        {"key": "ansi", "value": {"string_value": "\x1b[2J\nfake"}},
        {"key": "beyond", "value": {"int_value": 1}},
    ]
    (span,) = rebuilt(guard, {"name": "a\x1b]0;b\x07" + "n" * 500, "attributes": attributes, "kind": 77})
    values = {pair.key: pair.value.string_value for pair in span.attributes}
    assert values == {"source": "agent", "sandbox_id": "s1", "long": "x" * 50, "ansi": "\\x1b[2J\\nfake"}
    assert span.name.startswith("a\\x1b]0;b\\x07n")
    assert len(span.name) == 128
    assert span.kind == 1
    assert span.dropped_attributes_count == 3
    assert guard.tally.trimmed == 1


def test_events_and_links_are_bounded() -> None:
    guard = quarantine(events=2, links=1)
    now = time.time_ns()
    events = [{"name": f"e{number}", "time_unix_nano": now} for number in range(4)]
    events.insert(0, {"name": "1970", "time_unix_nano": 1})
    links = [{"trace_id": TRACE, "span_id": ROOT}] * 3
    (span,) = rebuilt(guard, {"events": events, "links": links})
    assert [event.name for event in span.events] == ["e0", "e1"]
    assert span.dropped_events_count == 3
    assert len(span.links) == 1


def test_numbers_are_bounded() -> None:
    guard = quarantine(spans=10)
    assert len(rebuilt(guard, *[{}] * 15)) == 10
    assert guard.tally.rejected == 5


def test_huge_batches_are_not_even_parsed() -> None:
    guard = quarantine()
    assert guard.rebuild(bytes(MAX_FRAME + 1)) is None
    assert guard.tally.batches == 1


def test_whoever_sends_rubbish_is_not_listened_to() -> None:
    guard = quarantine(rejected=3)
    assert rebuilt(guard, *[{"trace_id": b"X" * 16}] * 4) == []
    assert rebuilt(guard, {}) == []
    assert (guard.tally.rejected, guard.tally.batches) == (4, 1)


@pytest.mark.slow
def test_memory_stays_bounded() -> None:
    """The densest batch there is: nothing but empty spans. In a process of its own, whose peak is known."""
    code = """
import resource, sys
from kata_telemetry import otlp
from kata_telemetry.wire import MAX_FRAME
from kata_traces.store.quarantine import Quarantine

def field(content):
    size = len(content)
    return bytes([0x0A, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content

count = (MAX_FRAME - 20) // 2
scope = field(b"\\x12\\x00" * count)
data = field(b"\\x12" + scope[1:])
assert len(data) <= MAX_FRAME
otlp.preload()
guard = Quarantine("s1", since=1, trace_id=b"T" * 16, root_id=b"R" * 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert guard.rebuild(data) is None
assert guard.tally.rejected == count, guard.tally
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48


@pytest.mark.slow
@settings(max_examples=200)
@given(st.binary(max_size=400) | st.binary(max_size=60).map(lambda noise: batch({}, {}) + noise), st.data())
def test_no_bytes_get_through_that_are_not_ours(data: bytes, draw: st.DataObject) -> None:
    if data:
        flips = draw.draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4))
        changed = bytearray(data)
        for position, value in flips:
            changed[position] = value
        data = bytes(changed)
    guard = quarantine()
    request = guard.rebuild(data)
    if request is not None:
        line = otlp.to_line(request)
        assert otlp.from_line(line) == request.SerializeToString()
        for span in request.resource_spans[0].scope_spans[0].spans:
            assert span.trace_id == TRACE
            assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.name.isprintable()
