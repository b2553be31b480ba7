"""What a trace waited for, as systemd-analyze's users know it: by weight (`blame`), and as a chain."""

from collections.abc import Iterator
from dataclasses import dataclass

from kata_traces.read.analysis import critical_path
from kata_traces.read.trace import Trace, TraceSpan

__all__ = ["Blamed", "Link", "blame", "chain"]


@dataclass(frozen=True, slots=True)
class Blamed:
    """Spans of one name and lane: how long (ns) the trace waited for them alone, and how many they are."""

    span: TraceSpan
    waited: int
    count: int


@dataclass(frozen=True, slots=True)
class Link:
    """A span on the critical path. `waited` is what the end waited for it and what is in it, `own` for itself alone."""

    span: TraceSpan
    depth: int
    waited: int
    own: int
    last: bool


def blame(trace: Trace) -> list[Blamed]:
    """By name, the longest first; together they are as long as the root."""
    found: dict[tuple[str, str], list[tuple[TraceSpan, int]]] = {}
    for span, start, end in critical_path(trace.root):
        found.setdefault((span.name, span.lane.value), []).append((span, end - start))
    blamed = []
    for pieces in found.values():
        longest = max(pieces, key=lambda piece: piece[1])[0]
        blamed.append(Blamed(longest, sum(took for _, took in pieces), len({span.span_id for span, _ in pieces})))
    return sorted(blamed, key=lambda item: -item.waited)


def chain(trace: Trace, least: int = 0) -> Iterator[Link]:
    """The spans that the end waited for `least` ns or more, parents before children, as they came."""
    own: dict[str, int] = {}
    waited: dict[str, int] = {}
    for segment in critical_path(trace.root):
        took = segment.end - segment.start
        own[segment.span.span_id] = own.get(segment.span.span_id, 0) + took
        above: TraceSpan | None = segment.span
        while above is not None:
            waited[above.span_id] = waited.get(above.span_id, 0) + took
            above = above.parent
    pending = [(trace.root, 0, True)]
    while pending:
        span, depth, last = pending.pop()
        yield Link(span, depth, waited.get(span.span_id, 0), own.get(span.span_id, 0), last)
        below = [c for c in span.children if c.span_id in waited and waited[c.span_id] >= max(least, 1)]
        pending += [(child, depth + 1, child is below[-1]) for child in reversed(below)]
