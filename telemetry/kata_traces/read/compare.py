"""Runs against runs: which stage, and which span on the critical path, takes longer than before.

A run's time is cut twice, each time without gap or overlap: into stages (`analysis.split`) and into the spans that the
end waited for (`analysis.critical_path`). So the parts of a difference of two runs add up to it (medians of more need
not), and a parent is not blamed for what its child did.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kata_traces.read.analysis import critical_path, split
from kata_traces.read.trace import Trace, TraceSpan

__all__ = ["UNACCOUNTED", "Comparison", "Row", "Run", "compare", "median", "percentile", "run_of"]

UNACCOUNTED = "unaccounted"
Path = tuple[str, ...]
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Run:
    """One trace in figures, ns. Spans of one path (the names from the root on) count together."""

    label: str
    total: int
    stages: Mapping[str, int]
    durations: Mapping[Path, int]
    critical: Mapping[Path, int]
    # The critical path again, cut where stages change.
    inside: Mapping[tuple[str, Path], int]


@dataclass(frozen=True, slots=True)
class Row:
    """Something that both sides have or one of them lacks; ns. `change` is the difference of the medians of what it
    contributed to the total: its part of the stages, or of the critical path."""

    name: Path
    before_p50: int
    before_p95: int
    after_p50: int
    after_p95: int
    change: int
    # The same of its whole duration; for stages that is the same figure.
    duration_change: int
    runs_before: int
    runs_after: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """`total` is the whole run; `stages` and `spans` come with the largest contribution first."""

    total: Row
    stages: list[Row]
    spans: list[Row]
    # By stage, if it changed: the span that did most of that, by what it contributed to this stage alone.
    blamed: Mapping[str, Row]
    baseline: list[str]
    candidate: list[str]
    # Whether the candidate's median lies beyond all that the baseline's runs showed; always so with one run of each.
    clear: bool


def run_of(trace: Trace) -> Run:
    """The figures of a trace."""
    parts = split(trace)
    paths: dict[str, Path] = {}
    durations: dict[Path, int] = {}
    for span in trace.walk():
        path = _path(span, paths)
        durations[path] = durations.get(path, 0) + max(span.duration, 0)
    critical: dict[Path, int] = {}
    inside: dict[tuple[str, Path], int] = {}
    begins = [piece.start for piece in parts.slices]
    for segment in critical_path(trace.root):
        path = paths[segment.span.span_id]
        critical[path] = critical.get(path, 0) + segment.end - segment.start
        index = max(bisect_right(begins, segment.start) - 1, 0)
        while index < len(begins) and begins[index] < segment.end:
            piece = parts.slices[index]
            key = (piece.stage.value if piece.stage else UNACCOUNTED, path)
            took = min(segment.end, piece.end) - max(segment.start, piece.start)
            inside[key] = inside.get(key, 0) + max(took, 0)
            index += 1
    stages = {stage.value: took for stage, took in parts.stages.items()} | {UNACCOUNTED: parts.unaccounted}
    return Run(trace.meta.sandbox_id or trace.trace_id, parts.total, stages, durations, critical, inside)


def _path(span: TraceSpan, paths: dict[str, Path]) -> Path:
    above = paths[span.parent.span_id] if span.parent else ()
    # Hostile depth must not make every path as long as the trace.
    paths[span.span_id] = (above if len(above) < 64 else above[:63]) + (span.name,)
    return paths[span.span_id]


def compare(baseline: Sequence[Run], candidate: Sequence[Run]) -> Comparison:
    """`candidate` against `baseline`, one run or more of each."""
    totals_before, totals_after = [run.total for run in baseline], [run.total for run in candidate]
    total = _row((), totals_before, totals_after, totals_before, totals_after)
    stages = [
        _row((name,), before, after, before, after)
        for name, before, after in _columns([run.stages for run in baseline], [run.stages for run in candidate])
    ]
    critical = {
        name: (before, after)
        for name, before, after in _columns([run.critical for run in baseline], [run.critical for run in candidate])
    }
    spans = []
    for path, before, after in _columns([run.durations for run in baseline], [run.durations for run in candidate]):
        waited = critical.get(path, ([0] * len(baseline), [0] * len(candidate)))
        spans.append(_row(path, before, after, *waited))
    blamed: dict[str, Row] = {}
    changes = {row.name[0]: row.change for row in stages}
    for (stage, path), before, after in _columns([run.inside for run in baseline], [run.inside for run in candidate]):
        row = _row(path, before, after, before, after)
        if row.change * changes[stage] > 0 and (stage not in blamed or _weight(row) < _weight(blamed[stage])):
            blamed[stage] = row
    clear = len(baseline) == 1 or not min(totals_before) <= total.after_p50 <= max(totals_before)
    return Comparison(
        total,
        sorted(stages, key=_weight),
        sorted(spans, key=_weight),
        blamed,
        [run.label for run in baseline],
        [run.label for run in candidate],
        clear,
    )


def _weight(row: Row) -> tuple[int, int, Path]:
    return -abs(row.change), -abs(row.duration_change), row.name


def _columns(
    before: Sequence[Mapping[_Key, int]], after: Sequence[Mapping[_Key, int]]
) -> Iterable[tuple[_Key, list[int], list[int]]]:
    keys = dict.fromkeys(key for run in (*before, *after) for key in run)
    for key in keys:
        yield key, [run.get(key, 0) for run in before], [run.get(key, 0) for run in after]


def _row(name: Path, before: list[int], after: list[int], waited_before: list[int], waited_after: list[int]) -> Row:
    p50_before, p50_after = median(before), median(after)
    return Row(
        name,
        p50_before,
        percentile(before, 95),
        p50_after,
        percentile(after, 95),
        median(waited_after) - median(waited_before),
        p50_after - p50_before,
        sum(value > 0 for value in before),
        sum(value > 0 for value in after),
    )


def median(values: Sequence[int]) -> int:
    """The 50th percentile."""
    return percentile(values, 50)


def percentile(values: Sequence[int], share: int) -> int:
    """The value below which `share` percent of `values` lie, between two of them by proportion; of none, 0."""
    if not values:
        return 0
    ordered = sorted(values)
    place, rest = divmod((len(ordered) - 1) * share, 100)
    upper = ordered[min(place + 1, len(ordered) - 1)]
    return ordered[place] + (upper - ordered[place]) * rest // 100
