"""A trace as a waterfall for a terminal: who did what when, what everybody waited for, and where the time went.

`render` gives lines of fragments, each a text with the name of a style, and knows nothing of terminals; `plain` and
`coloured` put them out.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

from kata_traces.read.analysis import Split, critical_path, split
from kata_traces.read.cells import columns, crop, crop_left, headline, printable, wrap
from kata_traces.read.failure import failure_of
from kata_traces.read.remarks import remarks
from kata_traces.read.stages import Lane, Stage
from kata_traces.read.trace import Trace, TraceEvent, TraceSpan
from kata_traces.read.units import attribute, duration, percent, step

__all__ = ["Fragment", "Line", "Options", "coloured", "plain", "render"]

MIN_WIDTH: Final = 80
# Siblings that are folded into one row: at least so many in a row, each shorter than this share of the trace.
FOLD_COUNT: Final = 3
FOLD_SHARE: Final = 0.01
# As wide as the longest of Lane.
LANE_WIDTH: Final = 9
# Beyond this depth the tree is not drawn wider.
MAX_INDENT: Final = 12


class Fragment(NamedTuple):
    """A piece of a line; `style` names what it is, "" is ordinary text."""

    text: str
    style: str = ""


Line = list[Fragment]


@dataclass(frozen=True, slots=True)
class Options:
    """What to show. `min_duration` in ns; `depth` counts from the root, 0 shows all; `width` in columns."""

    width: int = MIN_WIDTH
    events: bool = False
    min_duration: int = 0
    depth: int = 0
    fold: bool = True
    ascii: bool = False


class _Glyphs(NamedTuple):
    busy: str
    idle: str
    point: str
    tee: str
    corner: str
    pipe: str
    error: str
    event: str
    times: str
    more: str
    mark: str
    tick: str


_UNICODE = _Glyphs("█", "░", "▏", "├─", "└─", "│ ", "✗", "·", "×", "…", "◆", "╷")  # noqa: RUF001 - a times sign it is
_ASCII = _Glyphs("#", "-", "|", "|-", "`-", "| ", "!", ".", "x", "~", "*", "|")


@dataclass(slots=True)
class _Row:
    """One row: a span, or several that are folded."""

    spans: list[TraceSpan]
    tree: str

    @property
    def first(self) -> TraceSpan:
        return self.spans[0]


def render(trace: Trace, options: Options) -> list[Line]:
    """All lines of the view, none wider than the options' width (80 at least)."""
    lines = _Waterfall(trace, options).lines()
    return [[Fragment(_to_ascii(text), style) for text, style in line] for line in lines] if options.ascii else lines


class _Waterfall:
    def __init__(self, trace: Trace, options: Options) -> None:
        self.trace = trace
        self.options = options
        self.glyphs = _ASCII if options.ascii else _UNICODE
        self.begin = min(span.start for span in trace.spans)
        self.total = max(max(span.end for span in trace.spans) - self.begin, 1)
        self.critical: dict[str, list[tuple[int, int]]] = {}
        for segment in critical_path(trace.root):
            self.critical.setdefault(segment.span.span_id, []).append((segment.start, segment.end))
        self.rows = self._rows()
        width = max(options.width, MIN_WIDTH)
        longest = max((columns(self._label(row)) for row in self.rows), default=0)
        # Lane, name, bar, duration and mark, with a blank between each.
        self.name_width = max(min(longest, (width - 23) * 9 // 20), 12)
        self.bar_width = width - LANE_WIDTH - self.name_width - 9 - 1 - 4
        self.width = width

    def lines(self) -> list[Line]:
        lines = [*self._head(), self._axis()]
        for row in self.rows:
            lines += self._row(row)
        return [*lines, *self._foot()]

    def _rows(self) -> list[_Row]:
        rows: list[_Row] = []
        # Spans to come, with the tree before their names.
        pending = [_Row([root], "") for root in reversed(self.trace.roots)]
        while pending:
            row = pending.pop()
            rows.append(row)
            span = row.first
            if len(row.spans) > 1 or (self.options.depth and span.depth + 1 >= self.options.depth):
                continue
            below = row.tree.replace(self.glyphs.tee, self.glyphs.pipe).replace(self.glyphs.corner, "  ")
            groups = list(self._groups([c for c in span.children if self._shown(c)]))
            for index, group in reversed(list(enumerate(groups))):
                branch = self.glyphs.corner if index == len(groups) - 1 else self.glyphs.tee
                pending.append(_Row(group, (below + branch)[-2 * MAX_INDENT :]))
        return rows

    def _shown(self, span: TraceSpan) -> bool:
        return span.duration >= self.options.min_duration or span.failed or span.open

    def _groups(self, spans: list[TraceSpan]) -> Iterator[list[TraceSpan]]:
        """Runs of short siblings of one kind together, others alone."""
        run: list[TraceSpan] = []
        for span in spans:
            if run and not (self._folds(span) and _kind(span) == _kind(run[0])):
                yield from _fold(run)
                run = []
            if self._folds(span):
                run.append(span)
            else:
                yield [span]
        yield from _fold(run)

    def _folds(self, span: TraceSpan) -> bool:
        small = span.duration < FOLD_SHARE * self.total
        return self.options.fold and small and not (span.children or span.failed or span.open)

    def _head(self) -> list[Line]:
        meta, trace = self.trace.meta, self.trace
        sandbox = meta.sandbox_id or str(trace.root.attributes.get("sandbox_id", ""))
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begin / 1e9))
        name = meta.name if meta.name != sandbox else ""
        parts = [f"sandbox {sandbox}" if sandbox else "", name, meta.command, began]
        state = "running" if trace.live else meta.outcome
        parts += [f"{len(trace.spans)} spans", state or ("ended without a word" if trace.root.open else "ended")]
        text = f" {self.glyphs.event} ".join(printable(part) for part in parts if part)
        return [
            [Fragment(crop(text, self.width), "head")],
            [Fragment(f"trace {printable(trace.trace_id)}", "faint")],
            [],
        ]

    def _axis(self) -> Line:
        """Times above the bars, at even distances."""
        apart = step(self.total, max(self.bar_width // 11, 1))
        cells = [" "] * self.bar_width
        at = 0
        while at <= self.total:
            label = "0" if not at else duration(at, tick=True)
            column = min(at * self.bar_width // self.total, self.bar_width - 1)
            if column + len(label) < self.bar_width:
                cells[column : column + 1 + len(label)] = self.glyphs.tick, *label
            at += apart
        return [Fragment(" " * (LANE_WIDTH + 1 + self.name_width + 1)), Fragment("".join(cells).rstrip(), "faint")]

    def _label(self, row: _Row) -> str:
        if len(row.spans) == 1:
            return row.tree + printable(row.first.name)
        names = {span.name for span in row.spans}
        name = printable(row.first.name) if len(names) == 1 else f"{_kind(row.first)[1]}.{self.glyphs.more}"
        return f"{row.tree}{len(row.spans)} {self.glyphs.times} {name}"

    def _row(self, row: _Row) -> Iterator[Line]:
        span = row.first
        failed = any(span.failed for span in row.spans)
        tree = row.tree
        name = crop_left(self._label(row)[len(tree) :], self.name_width - columns(tree), self.glyphs.more)
        style = "error" if failed else "critical" if self._is_critical(row) else "name"
        took = sum(span.duration for span in row.spans)
        text = duration(took) + ("+" if span.open else "")
        yield [
            Fragment(f"{span.lane.value:{LANE_WIDTH}}", f"lane.{span.lane.name}"),
            Fragment(" "),
            Fragment(tree, "faint"),
            Fragment(name + " " * (self.name_width - columns(tree + name)), style),
            Fragment(" "),
            *self._bar(row),
            Fragment(f" {text:>9}", style if style != "name" else ""),
            Fragment(f" {self.glyphs.mark}" if self._is_critical(row) else "", "critical"),
        ]
        indent = " " * (LANE_WIDTH + 1 + min(len(tree) + 2, self.name_width))
        # Errors travel upwards; they are told where they began.
        passed = any(child.failed and child.message == span.message for child in span.children)
        if failed and not (passed and span.message):
            message = headline(span.message) or "failed"
            yield [Fragment(crop(f"{indent}{self.glyphs.error} {message}", self.width, self.glyphs.more), "error")]
        if self.options.events:
            for single in row.spans:
                for event in single.events:
                    yield [Fragment(crop(indent + self._event(single, event), self.width, self.glyphs.more), "faint")]

    def _event(self, span: TraceSpan, event: TraceEvent) -> str:
        details = " ".join(
            f"{printable(str(k))}={printable(attribute(str(k), v))}" for k, v in event.attributes.items()
        )
        return f"{self.glyphs.event} +{duration(event.time - span.start)} {printable(event.name)} {details}".rstrip()

    def _is_critical(self, row: _Row) -> bool:
        return any(span.span_id in self.critical for span in row.spans)

    def _bar(self, row: _Row) -> Iterator[Fragment]:
        """Where the span went on, and in full colour where everybody waited for it."""
        cells = [" "] * self.bar_width
        for span in row.spans:
            first, last = self._columns(span.start, span.end)
            for column in range(first, last + 1):
                cells[column] = self.glyphs.idle
            if span.duration * self.bar_width < self.total // 2:
                cells[first] = self.glyphs.point
        for span in row.spans:
            for start, end in self.critical.get(span.span_id, ()):
                first, last = self._columns(start, end)
                # Less than half a column would look like more than it is, unless it is all there is.
                if (end - start) * self.bar_width >= self.total // 2:
                    cells[first : last + 1] = self.glyphs.busy * (last + 1 - first)
        lane = row.first.lane.name
        for text, bar in _runs(cells, (self.glyphs.busy, self.glyphs.point)):
            yield Fragment(text, f"bar.{lane}" if bar else f"shade.{lane}")

    def _columns(self, start: int, end: int) -> tuple[int, int]:
        """First and last column of a stretch of time: every column more than half of which it covers, one at least."""
        scale = self.bar_width / self.total
        first = min(max(round((start - self.begin) * scale), 0), self.bar_width - 1)
        last = min(max(round((end - self.begin) * scale) - 1, first), self.bar_width - 1)
        return first, last

    def _foot(self) -> Iterator[Line]:
        trace, glyphs = self.trace, self.glyphs
        yield []
        busy, idle = (
            f"{glyphs.mark} {glyphs.busy * 2} on the critical path",
            f"{glyphs.idle * 2} beside it, or in a child",
        )
        yield [Fragment(f"{busy}   {idle}", "faint")]
        failed = failure_of(trace)
        told = [*(failed.lines() if failed else ())]
        for line in told:
            yield from self._wrapped(line, "error")
        for line in remarks(trace):
            yield from self._wrapped(line, "error")
        parts = split(trace)
        yield []
        yield from self._stage_bar(parts)
        yield from self._sum(parts)

    def _wrapped(self, text: str, style: str) -> Iterator[Line]:
        """A remark, in as many lines as it takes."""
        mark = f"{self.glyphs.error} "
        # What is quoted keeps its indent.
        for line in wrap(text, self.width - len(mark)):
            yield [Fragment(mark + line, style)]
            mark = " " * len(mark)

    def _stage_bar(self, parts: Split) -> Iterator[Line]:
        """The whole as one bar of stages; without colour it would say nothing, so plain output leaves it out."""
        if not parts.total:
            return
        begin, line, used = parts.slices[0].start, [], 0
        for piece in parts.slices:
            edge = (piece.end - begin) * self.width // parts.total
            style = f"stage.{piece.stage.name if piece.stage else 'NONE'}"
            if edge > used:
                line.append(Fragment(self.glyphs.busy * (edge - used), style))
                used = edge
        yield line

    def _sum(self, parts: Split) -> Iterator[Line]:
        """The total and what it is made of, broken between the parts."""
        total = duration(parts.total) + ("+" if self.trace.root.open else "")
        items = [(f"{duration(took)} ({stage})", f"stage.{stage.name}") for stage, took in parts.stages.items()]
        share = percent(parts.unaccounted, parts.total)
        items.append((f"{duration(parts.unaccounted)} (unaccounted, {share})", "stage.NONE"))
        line: Line = [Fragment(f"total {total} =", "head")]
        used = columns(line[0].text)
        for index, (text, style) in enumerate(items):
            joint = " + " if index else " "
            if used + len(joint) + len(text) > self.width:
                yield line
                line, used, joint = [], 0, "   + "
            line += [Fragment(joint, "faint"), Fragment(text, style)]
            used += len(joint) + len(text)
        yield line


def _kind(span: TraceSpan) -> tuple[Lane, str]:
    """Siblings of one kind may be folded: `qmp.query-a` and `qmp.query-b` are, for `qmp.`."""
    head, dot, _ = span.name.partition(".")
    return span.lane, head if dot else span.name


def _fold(run: list[TraceSpan]) -> Iterator[list[TraceSpan]]:
    if len(run) >= FOLD_COUNT:
        yield run
    else:
        yield from ([span] for span in run)


def _runs(cells: Iterable[str], bars: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    text, kind = "", False
    for cell in cells:
        if text and (cell in bars) != kind:
            yield text, kind
            text = ""
        kind = cell in bars
        text += cell
    yield text, kind


def _to_ascii(text: str) -> str:
    return text.replace("µ", "u").encode("ascii", "replace").decode("ascii")


# For rich. Lanes: the colours of ANSI's own palette, which follow the terminal's theme.
_LANES: Final[Mapping[Lane, str]] = {
    Lane.RUNTIME: "blue",
    Lane.QEMU: "magenta",
    Lane.KERNEL: "yellow",
    Lane.AGENT: "green",
    Lane.CONTAINER: "cyan",
}
_STAGES: Final[Mapping[Stage, str]] = {
    Stage.CONFIG: "bright_black",
    Stage.HOST: "blue",
    Stage.QEMU: "magenta",
    Stage.RESTORE: "bright_cyan",
    Stage.HOTPLUG: "cyan",
    Stage.FIRMWARE: "bright_magenta",
    Stage.KERNEL: "yellow",
    Stage.INITRAMFS: "bright_yellow",
    Stage.AGENT: "green",
    Stage.SANDBOX: "bright_green",
    Stage.CONTAINER: "cyan",
    Stage.EXEC: "bright_blue",
    Stage.WORKLOAD: "bright_cyan",
    Stage.STOP: "white",
}


def _theme() -> dict[str, str]:
    styles = {"head": "bold", "faint": "bright_black", "error": "bold red", "critical": "bold", "name": ""}
    for lane, colour in _LANES.items():
        styles |= {f"lane.{lane.name}": colour, f"bar.{lane.name}": colour, f"shade.{lane.name}": f"dim {colour}"}
    styles |= {f"stage.{stage.name}": colour for stage, colour in _STAGES.items()}
    return styles | {"stage.NONE": "red"}


def plain(lines: Iterable[Line], stream: IO[str]) -> None:
    """Without colour: for pipes and files."""
    for line in lines:
        if not line or not all(fragment.style.startswith("stage.") for fragment in line):
            stream.write("".join(fragment.text for fragment in line).rstrip() + "\n")


def coloured(lines: Iterable[Line], stream: IO[str], width: int) -> None:
    """With colour, as far as TERM says that the terminal has it; whether to is the caller's to decide."""
    from rich.console import Console
    from rich.text import Text

    theme = _theme()
    console: Any = Console(file=stream, width=width, highlight=False, force_terminal=True)
    for line in lines:
        pieces = [(fragment.text, theme.get(fragment.style, "")) for fragment in line]
        console.print(Text.assemble(*pieces), no_wrap=True, overflow="crop", crop=True)
