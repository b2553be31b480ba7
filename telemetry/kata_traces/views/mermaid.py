"""A trace as a Mermaid gantt chart, for comments of issues and pull requests that draw it.

Syntax: https://mermaid.js.org/syntax/gantt.html. Such a chart is a picture of fixed width, so the rows are few: runs of
siblings of one kind are one row, and of the rest the longest are shown.
"""

from typing import Final, NamedTuple

from kata_traces.read.analysis import critical_path, split
from kata_traces.read.stages import Lane
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.read.units import duration, percent

__all__ = ["MAX_ROWS", "render"]

MAX_ROWS: Final = 40
MAX_LABEL: Final = 48
# Siblings that become one row, and the share of the trace that each of them stays below.
FOLD_COUNT: Final = 3
FOLD_SHARE: Final = 0.02


class _Row(NamedTuple):
    lane: Lane
    label: str
    start: int
    end: int
    critical: bool
    failed: bool
    depth: int


def render(trace: Trace, *, rows: int = MAX_ROWS) -> str:
    """The chart's text, with at most `rows` bars; times are ms after the beginning."""
    begin = min(span.start for span in trace.spans)
    chosen = _rows(trace)
    total = len(chosen)
    # The longest, and whatever failed.
    chosen = sorted(chosen, key=lambda row: (not row.failed, row.start - row.end, row.depth))[:rows]
    longest = max(span.end for span in trace.spans) - begin
    lines = [
        "gantt",
        f"  title {_title(trace)}",
        # Milliseconds since the epoch, which a zone may shift by hours: the axis shows nothing above minutes.
        "  dateFormat x",
        f"  axisFormat {'%M:%S' if longest > 60_000_000_000 else '%S.%L s'}",
    ]
    for lane in Lane:
        bars = sorted((row for row in chosen if row.lane is lane), key=lambda row: (row.start, row.depth))
        if bars:
            lines.append(f"  section {lane}")
        for row in bars:
            # Grey is what nobody waited for, or what waited itself.
            tag = "crit, " if row.failed else "" if row.critical else "done, "
            start = max(round((row.start - begin) / 1e6), 0)
            end = max(round((row.end - begin) / 1e6), start + 1)
            lines.append(f"  {row.label} :{tag}{start}, {end}")
    left_out = total - len(chosen)
    if left_out:
        lines.append(f"  %% {left_out} shorter rows are left out")
    return "\n".join(lines) + "\n"


def _title(trace: Trace) -> str:
    parts = split(trace)
    name = trace.meta.name or trace.meta.sandbox_id or trace.trace_id
    state = "running" if trace.live else trace.meta.outcome
    words = [name, duration(parts.total), state, f"{percent(parts.unaccounted, parts.total)} unaccounted"]
    return ", ".join(_clean(word) for word in words if word)


def _rows(trace: Trace) -> list[_Row]:
    waited: dict[str, int] = {}
    for span, start, end in critical_path(trace.root):
        waited[span.span_id] = waited.get(span.span_id, 0) + end - start
    limit = max(trace.root.duration, 1) * FOLD_SHARE
    # Nearly everything is on the critical path for a moment; what counts is seen.
    critical = {span_id for span_id, took in waited.items() if took >= limit / 2}
    rows: list[_Row] = []
    for siblings in [trace.roots, *(span.children for span in trace.walk() if span.children)]:
        groups: dict[tuple[Lane, str], list[TraceSpan]] = {}
        for span in siblings:
            short = span.duration < limit and not span.children and not span.failed
            # A key of its own keeps a span alone.
            groups.setdefault((span.lane, _kind(span.name) if short else span.span_id), []).append(span)
        for (lane, kind), spans in groups.items():
            if len(spans) < FOLD_COUNT:
                rows += [_row(lane, span.name, [span], critical) for span in spans]
            else:
                rows.append(_row(lane, f"{len(spans)} x {kind}", spans, critical))
    return rows


def _kind(name: str) -> str:
    head, dot, _ = name.partition(".")
    return head + dot


def _row(lane: Lane, name: str, spans: list[TraceSpan], critical: set[str]) -> _Row:
    took = duration(sum(span.duration for span in spans))
    return _Row(
        lane,
        f"{_clean(name)} {took}",
        min(span.start for span in spans),
        max(span.end for span in spans),
        any(span.span_id in critical for span in spans),
        any(span.failed for span in spans),
        spans[0].depth,
    )


def _clean(text: str) -> str:
    """Without anything that Mermaid might read as more than a label: `:`, `;`, `#`, `%%` and markup are syntax."""
    kept = "".join(c if c.isalnum() or c in " ._-+/()=µ%" else " " for c in text[: 4 * MAX_LABEL])
    words = " ".join(kept.replace("%%", "%").split()).lstrip("% ")
    # A line that begins with a keyword would be a statement.
    words = f"({words})" if words.split(" ")[0].lower() in _KEYWORDS else words
    return words[:MAX_LABEL].strip() or "unnamed"


_KEYWORDS: Final = frozenset(
    {"acctitle", "accdescr", "axisformat", "click", "dateformat", "displaymode", "done", "end", "excludes", "gantt"}
    | {"includes", "inclusiveenddates", "section", "tickinterval", "title", "todaymarker", "topaxis", "vert"}
    | {"weekday", "weekend"}
)
