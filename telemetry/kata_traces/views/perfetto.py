"""A trace for ui.perfetto.dev and chrome://tracing: JSON of the Trace Event Format.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Perfetto draws slices of
one thread only if they lie beside or within each other (https://perfetto.dev/docs/faq, "overlapping events"), which
spans don't: a lane gets as many threads as that takes. Times are µs after the trace's beginning, so that a
double holds them to the ns; the beginning itself is in `otherData`.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from kata_traces.read.analysis import critical_path
from kata_traces.read.stages import Lane
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.views.values import portable

__all__ = ["to_events", "tracks"]

PROCESS: Final = 1
# Tracks that are tried for room within what goes on there.
RECENT: Final = 32


def to_events(trace: Trace) -> dict[str, Any]:
    """The content of the file."""
    begin = min(span.start for span in trace.spans)
    name = trace.meta.name or trace.meta.sandbox_id or trace.trace_id
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": PROCESS, "tid": 0, "args": {"name": f"sandbox {name}"}}
    ]
    critical: dict[str, int] = {}
    for segment in critical_path(trace.root):
        critical[segment.span.span_id] = critical.get(segment.span.span_id, 0) + segment.end - segment.start
    thread = 0
    for lane in Lane:
        spread = tracks([span for span in trace.walk() if span.lane is lane])
        for index, track in enumerate(spread):
            thread += 1
            label = lane.value if not index else f"{lane.value} ({index + 1})"
            about = {"ph": "M", "pid": PROCESS, "tid": thread}
            events.append({**about, "name": "thread_name", "args": {"name": label}})
            events.append({**about, "name": "thread_sort_index", "args": {"sort_index": thread}})
            for span in track:
                events += _slice(span, thread, begin, critical.get(span.span_id, 0))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "trace_id": trace.trace_id,
            "sandbox_id": trace.meta.sandbox_id,
            "outcome": trace.meta.outcome,
            "begin_unix_ns": str(begin),
        },
    }


def tracks(spans: Iterable[TraceSpan]) -> list[list[TraceSpan]]:
    """`spans` on as few tracks as come easily; two of one track lie beside each other or one within the other.

    On each track they are in order, outer ones first.
    """
    found: list[list[TraceSpan]] = []
    # Per track the ends of the spans that are going on, the innermost last.
    going_on: list[list[int]] = []
    # When each track will be free, and the tracks that were used last: looking at all would take the square of time.
    free: list[tuple[int, int]] = []
    recent: deque[int] = deque(maxlen=RECENT)
    for span in sorted(spans, key=lambda span: (span.start, -span.end, span.depth)):
        # One that ends before it starts is a point.
        end = max(span.end, span.start)
        index = _room(span.start, end, going_on, free, recent)
        if index == len(found):
            found.append([])
            going_on.append([])
        if not going_on[index]:
            heapq.heappush(free, (end, index))
        found[index].append(span)
        going_on[index].append(end)
        if index in recent:
            recent.remove(index)
        recent.appendleft(index)
    return found


def _room(start: int, end: int, going_on: list[list[int]], free: list[tuple[int, int]], recent: Iterable[int]) -> int:
    """A track that takes a span from `start` to `end`: within one that goes on there, an idle one, or a new one."""
    for index in recent:
        ends = going_on[index]
        while ends and ends[-1] <= start:
            ends.pop()
        if ends and end <= ends[-1]:
            return index
    while free and free[0][0] <= start:
        _, index = heapq.heappop(free)
        ends = going_on[index]
        while ends and ends[-1] <= start:
            ends.pop()
        if not ends:
            return index
    return len(going_on)


def _slice(span: TraceSpan, thread: int, begin: int, critical: int) -> Iterable[dict[str, Any]]:
    details: dict[str, Any] = {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "service": span.service,
        "stage": span.rule.stage.value if span.rule.stage else "",
        "critical_path_us": critical / 1000,
        **({"open": True} if span.open else {}),
        **({"error": span.message or "failed"} if span.failed else {}),
        **({"ends_before_it_starts_us": -span.duration / 1000} if span.duration < 0 else {}),
        **{f"attribute.{key}": portable(value) for key, value in span.attributes.items()},
    }
    yield {
        "ph": "X",
        "name": span.name,
        "cat": span.service,
        "pid": PROCESS,
        "tid": thread,
        "ts": (span.start - begin) / 1000,
        "dur": max(span.duration, 0) / 1000,
        "args": details,
        # One of the names of colours that the format reserves.
        **({"cname": "terrible"} if span.failed else {}),
    }
    for event in span.events:
        yield {
            "ph": "i",
            "s": "t",
            "name": event.name,
            "cat": "event",
            "pid": PROCESS,
            "tid": thread,
            "ts": (event.time - begin) / 1000,
            "args": {"span_id": span.span_id, **{key: portable(value) for key, value in event.attributes.items()}},
        }
