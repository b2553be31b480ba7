"""Where the time of a trace went: its critical path, and its stages."""

import heapq
from dataclasses import dataclass
from typing import NamedTuple

from kata_traces.read.stages import Role, Stage
from kata_traces.read.trace import Trace, TraceSpan

__all__ = ["Segment", "Slice", "Split", "critical_path", "split"]


class Segment(NamedTuple):
    """From `start` to `end` (host time, ns) the trace waited for `span` itself, not for one of its children."""

    span: TraceSpan
    start: int
    end: int


class Slice(NamedTuple):
    """From `start` to `end` (host time, ns) the sandbox was in `stage`; None is unaccounted."""

    stage: Stage | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Split:
    """The wall time of the root, cut into stages. The sum of `stages` and `unaccounted` is `total`; all in ns."""

    total: int
    stages: dict[Stage, int]
    unaccounted: int
    slices: list[Slice]

    @property
    def gaps(self) -> list[Slice]:
        """The unaccounted stretches, the longest first."""
        return sorted((s for s in self.slices if s.stage is None), key=lambda s: s.start - s.end)


def critical_path(root: TraceSpan) -> list[Segment]:
    """What the end of `root` waited for, from its start on: segments that cover it without gap or overlap.

    From the end backwards: the child that ended last before the cursor is what was waited for; where it started, the
    cursor goes on. A child that is still running at the cursor held nobody up. Children count as far as they lie within
    their parents. Those that work come first; what they leave open is the workload's, and then of those that wait.
    """
    roles = _roles(root)
    path: list[Segment] = []
    # Spans, and the windows of time that are theirs or their children's.
    pending: list[tuple[TraceSpan, list[_Window]]] = [(root, [(root.start, root.end)] if root.start < root.end else [])]
    while pending:
        span, windows = pending.pop()
        for role in Role:
            children = [child for child in span.children if roles[child.span_id] is role]
            if children and windows:
                chosen = _awaited(children, windows[0][0], windows[-1][1])
                taken, windows = _share_out(chosen, windows)
                pending += taken
        path += [Segment(span, start, end) for start, end in windows]
    path.sort(key=lambda segment: segment.start)
    return path


_Window = tuple[int, int]


def _awaited(children: list[TraceSpan], begin: int, end: int) -> list[tuple[TraceSpan, _Window]]:
    """The children that were waited for between `begin` and `end`, and when; in order, without overlap."""
    found: list[tuple[TraceSpan, _Window]] = []
    cursor = end
    for child in sorted(children, key=lambda child: (min(child.end, end), child.start), reverse=True):
        start, stop = max(child.start, begin), min(child.end, end)
        if start < stop <= cursor:
            found.append((child, (start, stop)))
            cursor = start
    found.reverse()
    return found


def _share_out(
    chosen: list[tuple[TraceSpan, _Window]], windows: list[_Window]
) -> tuple[list[tuple[TraceSpan, list[_Window]]], list[_Window]]:
    """Which part of `windows` falls to each of `chosen`, and which to none."""
    taken: list[tuple[TraceSpan, list[_Window]]] = []
    left: list[_Window] = []
    index = 0
    for child, (start, end) in chosen:
        theirs: list[_Window] = []
        while index < len(windows) and windows[index][0] < end:
            begin, stop = windows[index]
            if begin < start:
                left.append((begin, min(start, stop)))
            if max(begin, start) < min(stop, end):
                theirs.append((max(begin, start), min(stop, end)))
            if stop > end:
                windows[index] = (end, stop)
                break
            index += 1
        if theirs:
            taken.append((child, theirs))
    return taken, left + windows[index:]


def _roles(root: TraceSpan) -> dict[str, Role]:
    """The role of each span below `root`: one that waits while a child of it works is working."""
    order = [root]
    for span in order:
        order += span.children
    roles: dict[str, Role] = {}
    for span in reversed(order):
        roles[span.span_id] = min([span.rule.role, *(roles[child.span_id] for child in span.children)])
    return roles


def split(trace: Trace) -> Split:
    """Every instant of the root belongs to one stage: that of the deepest span of a stage that is going on.

    Spans beside each other: one that works goes before one that lasts or waits, then the deeper, then the later one.
    """
    root = trace.root
    total = max(root.end - root.start, 0)
    slices = _sweep(list(trace.walk()), root.start, root.start + total)
    totals: dict[Stage, int] = {}
    for piece in slices:
        if piece.stage is not None:
            totals[piece.stage] = totals.get(piece.stage, 0) + piece.end - piece.start
    ordered = {stage: totals[stage] for stage in Stage if stage in totals}
    return Split(total, ordered, total - sum(ordered.values()), slices)


def _sweep(spans: list[TraceSpan], begin: int, end: int) -> list[Slice]:
    """The stretches from `begin` to `end`, neighbours of the same stage as one. `spans`: parents before children."""
    staged = [s for s in spans if s.rule.stage is not None and max(s.start, begin) < min(s.end, end)]
    # Ends before starts, so that neighbours do not overlap.
    moments = sorted(
        [(max(s.start, begin), 1, index) for index, s in enumerate(staged)]
        + [(min(s.end, end), 0, index) for index, s in enumerate(staged)]
    )
    above = _staged_ancestors(spans, staged)
    keys = [(s.rule.role, -s.depth, -s.start, index) for index, s in enumerate(staged)]
    active = [False] * len(staged)
    # How many spans right below are going on: a span with any of them leaves the time to them.
    below = [0] * len(staged)
    candidates: list[tuple[int, int, int, int]] = []
    slices: list[Slice] = []
    since = begin

    def cut(until: int, stage: Stage | None) -> None:
        if until <= since:
            return
        if slices and slices[-1].stage == stage:
            slices[-1] = Slice(stage, slices[-1].start, until)
        else:
            slices.append(Slice(stage, since, until))

    for moment, starts, index in moments:
        if moment > since:
            while candidates and (not active[candidates[0][3]] or below[candidates[0][3]]):
                heapq.heappop(candidates)
            cut(moment, staged[candidates[0][3]].rule.stage if candidates else None)
            since = moment
        active[index] = bool(starts)
        upper = above[index]
        if upper is not None:
            below[upper] += 1 if starts else -1
            if not below[upper] and active[upper]:
                heapq.heappush(candidates, keys[upper])
        if starts and not below[index]:
            heapq.heappush(candidates, keys[index])
    cut(end, None)
    return slices


def _staged_ancestors(spans: list[TraceSpan], staged: list[TraceSpan]) -> list[int | None]:
    """For each of `staged`, the index in it of its nearest ancestor there."""
    index_of = {span.span_id: index for index, span in enumerate(staged)}
    nearest: dict[str, int | None] = {}
    for span in spans:
        parent = span.parent.span_id if span.parent else ""
        nearest[span.span_id] = index_of[parent] if parent in index_of else nearest.get(parent)
    return [nearest[span.span_id] for span in staged]
