"""A trace as one SVG, as `systemd-analyze plot` draws a boot: a picture for a report, without a script."""

import html
import time
from collections.abc import Iterable, Iterator
from typing import Final

from kata_traces.read.analysis import Segment, critical_path, split
from kata_traces.read.cells import printable
from kata_traces.read.failure import failure_of
from kata_traces.read.stages import Lane, Stage
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.read.units import duration, percent, step

__all__ = ["render"]

ROW, BAR, TOP, LEFT, CHART = 20, 13, 96, 16, 1100
# Room for names that stand right of their bars.
RIGHT: Final = 340
# Spans that are drawn: as long as this share of the whole, failed or on the critical path, and at most so many.
LEAST: Final = 0.002
MOST: Final = 500

# Of lanes and stages, for light and dark paper.
LANES: Final = {
    Lane.RUNTIME: ("#3b6fd4", "#7aa5f5"),
    Lane.QEMU: ("#a14fc4", "#cf8fe8"),
    Lane.KERNEL: ("#b07d12", "#e3b34c"),
    Lane.AGENT: ("#23895a", "#5fc796"),
    Lane.CONTAINER: ("#0f8a9b", "#54c3d1"),
}
STAGES: Final = {
    Stage.CONFIG: "#8a919e",
    Stage.HOST: "#3b6fd4",
    Stage.QEMU: "#a14fc4",
    Stage.RESTORE: "#7f9fd1",
    Stage.HOTPLUG: "#5f86b8",
    Stage.FIRMWARE: "#c77fdf",
    Stage.KERNEL: "#b07d12",
    Stage.INITRAMFS: "#d8a93b",
    Stage.AGENT: "#23895a",
    Stage.SANDBOX: "#5fb98c",
    Stage.CONTAINER: "#0f8a9b",
    Stage.EXEC: "#5c8be0",
    Stage.WORKLOAD: "#4fb6c4",
    Stage.STOP: "#6b7280",
}


def render(trace: Trace) -> str:
    """The whole file."""
    spans = _shown(trace)
    height = TOP + ROW * len(spans) + 40
    width = LEFT + CHART + RIGHT
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    begin, total = trace.root.start, max(trace.duration, 1)
    waited: dict[str, list[Segment]] = {}
    for segment in critical_path(trace.root):
        waited.setdefault(segment.span.span_id, []).append(segment)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12">',
            f"<title>{_text(_title(trace))}</title>",
            _style(),
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *_head(trace),
            *_grid(total, height),
            *_stages(trace, total),
            *(
                line
                for row, span in enumerate(spans)
                for line in _row(span, waited.get(span.span_id, ()), row, begin, total)
            ),
            "</svg>",
            "",
        ]
    )


def _shown(trace: Trace) -> list[TraceSpan]:
    waited = {segment.span.span_id for segment in critical_path(trace.root) if segment.end - segment.start > 0}
    least = trace.duration * LEAST
    found = [s for s in trace.walk() if s.failed or s.duration >= least or (s.span_id in waited and s.depth < 2)]
    if len(found) > MOST:
        longest = sorted(found, key=lambda span: (not span.failed, -span.duration))[:MOST]
        kept = {span.span_id for span in longest}
        found = [span for span in found if span.span_id in kept]
    return found


def _text(text: str) -> str:
    """What XML takes, and nothing that a reader would obey."""
    return html.escape(printable(text).encode("utf-8", "replace").decode())


def _title(trace: Trace) -> str:
    meta = trace.meta
    return " · ".join(filter(None, ("sandbox " + (meta.sandbox_id or trace.trace_id), meta.name, meta.command)))


def _style() -> str:
    light = "".join(f".{lane.name} {{ fill: {colours[0]} }} " for lane, colours in LANES.items())
    dark = "".join(f".{lane.name} {{ fill: {colours[1]} }} " for lane, colours in LANES.items())
    return (
        "<style>.paper { fill: #fff } text { fill: #1c2430 } .faint { fill: #5a6575 } .bad { fill: #b42318 } "
        f".grid {{ stroke: #dfe3ea }} .idle {{ opacity: .28 }} .bold {{ font-weight: 650 }} {light}"
        "@media (prefers-color-scheme: dark) { .paper { fill: #14181f } text { fill: #e6eaf0 } "
        ".faint { fill: #9aa5b5 } "
        f".bad {{ fill: #ff8a80 }} .grid {{ stroke: #2b323d }} {dark} }}</style>"
    )


def _head(trace: Trace) -> Iterator[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trace.root.start / 1e9))
    failed = failure_of(trace)
    parts = split(trace)
    facts = f"{when} · {duration(trace.duration)} · {len(trace.spans)} spans · "
    facts += f"{percent(parts.unaccounted, parts.total)} unaccounted · {trace.meta.outcome or 'ended'}"
    yield f'<text x="{LEFT}" y="24" font-size="16" class="bold">{_text(_title(trace))}</text>'
    yield f'<text x="{LEFT}" y="42" class="faint">{_text(facts)}</text>'
    if failed is not None:
        yield f'<text x="{LEFT}" y="58" class="bad">{_text(failed.said[0][:180])}</text>'


def _x(moment: int, total: int) -> float:
    return LEFT + CHART * min(max(moment, 0), total) / total


def _grid(total: int, height: int) -> Iterator[str]:
    for at in range(0, total + 1, step(total, 12)):
        x = _x(at, total)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - 16}"/>'
        yield f'<text class="faint" x="{x + 3:.1f}" y="{height - 18}" font-size="11">{duration(at, tick=True)}</text>'


def _stages(trace: Trace, total: int) -> Iterator[str]:
    begin = trace.root.start
    for piece in split(trace).slices:
        x, end = _x(piece.start - begin, total), _x(piece.end - begin, total)
        colour = STAGES[piece.stage] if piece.stage else "#e5484d"
        name = piece.stage.value if piece.stage else "unaccounted"
        label = f"{name} {duration(piece.end - piece.start)}"
        yield f'<rect x="{x:.1f}" y="66" width="{max(end - x, 0.5):.1f}" height="14" fill="{colour}">'
        yield f"<title>{_text(label)}</title></rect>"
        if end - x > 8 * len(name) + 6:
            yield f'<text x="{x + 4:.1f}" y="77" font-size="11" style="fill:#fff">{_text(name)}</text>'


def _row(span: TraceSpan, waited: Iterable[Segment], row: int, begin: int, total: int) -> Iterator[str]:
    y = TOP + ROW * row
    x, end = _x(span.start - begin, total), _x(max(span.end, span.start) - begin, total)
    about = f"{span.name}: {duration(span.duration)}, {span.lane.value}"
    yield f'<g><title>{_text(about)}</title><rect class="{span.lane.name} idle" x="{x:.1f}" y="{y}" '
    yield f'width="{max(end - x, 1):.1f}" height="{BAR}" rx="2"/>'
    for segment in waited:
        left, right = _x(segment.start - begin, total), _x(segment.end - begin, total)
        if right - left >= 0.3:
            yield f'<rect class="{span.lane.name}" x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="{BAR}"/>'
    kind = "bad" if span.failed else ""
    name = _text(f"{span.name[:60]}  ({duration(span.duration)}{'+' if span.open else ''})")
    # Beside the bar where there is room, else in it.
    if end > LEFT + CHART - 40 and x > LEFT + CHART / 2:
        yield f'<text class="{kind}" x="{x - 5:.1f}" y="{y + 11}" text-anchor="end">{name}</text></g>'
    else:
        yield f'<text class="{kind}" x="{x + 4 if end - x > CHART / 2 else end + 5:.1f}" y="{y + 11}">{name}</text></g>'
