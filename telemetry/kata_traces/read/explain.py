"""A trace in plain words: why it failed, or what dominated its start, and what would change that."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kata_telemetry.conventions import START_PATH
from kata_traces.read.advice import advice
from kata_traces.read.analysis import critical_path, split
from kata_traces.read.cells import crop, printable
from kata_traces.read.compare import UNACCOUNTED, median
from kata_traces.read.failure import MAX_LINE, MAX_SAID, Failure, failure_of, path_to
from kata_traces.read.remarks import remarks
from kata_traces.read.stages import Stage
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.read.units import duration, percent

__all__ = ["MAX_EARLIER", "MAX_LINES", "Start", "explain", "start_of"]

MAX_LINES: Final = 16
# Earlier traces that are worth reading for their medians.
MAX_EARLIER: Final = 20
NAMED: Final = 3
# A stage is unusual from this factor on, and if it is this much longer (ns): small ones vary for no reason.
UNUSUAL: Final = 1.5
UNUSUAL_NS: Final = 50_000_000
# What ends a start: the container's process runs.
STARTED: Final = frozenset({"Start", "start_container", "AgentService.StartContainer"})
# A stop is worth a line from this share of the whole on.
LONG_STOP: Final = 0.15


@dataclass(frozen=True, slots=True)
class Start:
    """From the root's start to the first process, ns; where there was none, the whole. Stages incl. unaccounted."""

    end: int
    total: int
    reached: bool
    stages: dict[str, int]
    # Where the VM came from: a clone's start and a boot are not alike.
    path: str = ""


def start_of(trace: Trace) -> Start:
    """How long it took to the first process, and what of."""
    root = trace.root
    ends = [s.end for s in trace.spans if s.name in STARTED and not (s.failed or s.open) and s.end > root.start]
    begins = [s.start for s in trace.spans if s.name == "process" and s.start > root.start]
    end = min([*ends, *begins], default=root.end)
    stages: dict[str, int] = {}
    for piece in split(trace).slices:
        took = min(piece.end, end) - piece.start
        if took > 0:
            name = piece.stage.value if piece.stage else UNACCOUNTED
            stages[name] = stages.get(name, 0) + took
    path = str(root.attributes.get(START_PATH, ""))
    return Start(end, max(end - root.start, 0), bool(ends or begins), stages, path)


def explain(trace: Trace, earlier: Sequence[Start] = ()) -> list[str]:
    """Lines about `trace`; `earlier` are starts of other sandboxes that went well."""
    failed = failure_of(trace)
    start = start_of(trace)
    lines = [_opening(trace, start, failed)]
    if failed is not None:
        lines += _failed(failed, trace)
    elif not (trace.live or trace.meta.outcome) and trace.root.open:
        lines += _death(trace)
    lines += _dominated(trace, start)
    lines += advice(trace)
    if start.reached:
        lines += _compared(start, earlier)
    lines += _gaps(trace, start)
    lines += _stop(trace)
    lines += [f"Mind: {text}." for text in remarks(trace)]
    return [crop(line, MAX_LINE) for line in lines[: MAX_LINES + MAX_SAID]]


def _opening(trace: Trace, start: Start, failed: Failure | None) -> str:
    meta = trace.meta
    who = f"Sandbox {printable(meta.sandbox_id or trace.trace_id)}"
    if meta.command:
        who += f" ({printable(meta.command)})"
    whole = duration(trace.duration)
    if failed is not None and not start.reached:
        return f"{who} failed after {whole}, before its first process."
    if trace.live:
        state = "it is still running"
    elif failed is not None:
        state = "then it failed" if failed.fatal else "something failed"
    else:
        # A file of OTLP has no outcome; a root that has ended tells that it did.
        silent = "it ended without a word" if trace.root.open else "it ended"
        state = f"it ended with {printable(meta.outcome)}" if meta.outcome else silent
    if not start.reached and trace.live:
        return f"{who}: {whole} so far without a first process; {state}."
    if not start.reached:
        # Of a sandbox that did well, spans were lost.
        return f"{who} took {whole} in all, and the trace has no first process; {state}."
    return f"{who} took {duration(start.total)} to its first process and {whole} in all; {state}."


def _failed(failure: Failure, trace: Trace) -> Iterator[str]:
    for index, line in enumerate(failure.lines()):
        before = "Why: " if failure.fatal else "Something failed, and the sandbox went on: "
        yield line if index else before + line
    if not failure.fatal and trace.root.open and not trace.live:
        yield from _death(trace)


def _death(trace: Trace) -> Iterator[str]:
    last = max((s for s in trace.walk() if s.open), key=lambda span: (span.depth, span.start))
    if last is not trace.root:
        yield f"Whoever wrote the trace was killed; the last that went on was {printable(last.name)}: {path_to(last)}."


def _dominated(trace: Trace, start: Start) -> Iterator[str]:
    if not start.total:
        return
    window = "the start" if start.reached else "it"
    stages = sorted(((took, name) for name, took in start.stages.items() if name != UNACCOUNTED), reverse=True)
    if stages:
        parts = [f"{name} {duration(took)} ({percent(took, start.total)})" for took, name in stages[:NAMED]]
        yield f"Most of {window} went to: {', '.join(parts)}."
    waited: dict[str, tuple[int, TraceSpan]] = {}
    for span, begin, end in critical_path(trace.root):
        took = min(end, start.end) - begin
        if took > 0 and span is not trace.root:
            waited[span.name] = (waited.get(span.name, (0, span))[0] + took, span)
    longest = sorted(waited.values(), key=lambda item: -item[0])[:NAMED]
    if longest:
        parts = [f"{printable(span.name)} {duration(took)} ({span.lane.value})" for took, span in longest]
        yield f"What everybody waited for: {', '.join(parts)}."


def _compared(start: Start, earlier: Sequence[Start]) -> Iterator[str]:
    earlier = [other for other in earlier if other.path == start.path]
    if not earlier:
        return
    kind = f"{start.path} start" if start.path else "start"
    others = f"the median of {len(earlier)} earlier {kind}{'s' if len(earlier) > 1 else ''}"
    usual_total = median([other.total for other in earlier])
    unusual = []
    for name, took in start.stages.items():
        usual = median([other.stages.get(name, 0) for other in earlier])
        if took > UNUSUAL * usual and took - usual > UNUSUAL_NS:
            unusual.append((took - usual, name, took, usual))
    for _, name, took, usual in sorted(unusual, reverse=True)[:NAMED]:
        factor = f"{took / usual:.1f} times {others}, {duration(usual)}" if usual else f"{others} has none of it"
        yield f"Unusual: {name} took {duration(took)}, {factor}."
    if not unusual:
        yield f"Nothing of that is unusual: {others} took {duration(usual_total)}."


def _gaps(trace: Trace, start: Start) -> Iterator[str]:
    lost = start.stages.get(UNACCOUNTED, 0)
    gaps = [gap for gap in split(trace).gaps if gap.start < start.end]
    if not gaps or lost * 100 < start.total:
        return
    before = [s for s in trace.spans if s.end <= gaps[0].start and s is not trace.root]
    after = f", after {printable(max(before, key=lambda span: span.end).name)}" if before else ""
    longest = duration(min(gaps[0].end, start.end) - gaps[0].start)
    yield (
        f"{duration(lost)} ({percent(lost, start.total)}) are unaccounted for; the longest stretch is {longest}{after}."
    )


def _stop(trace: Trace) -> Iterator[str]:
    took = split(trace).stages.get(Stage.STOP, 0)
    if took <= LONG_STOP * trace.duration:
        return
    waited: dict[str, int] = {}
    for span, begin, end in critical_path(trace.root):
        if span.rule.stage is Stage.STOP:
            waited[span.name] = waited.get(span.name, 0) + end - begin
    name = max(waited, key=lambda name: waited[name], default="")
    part = f", {duration(waited[name])} of it in {printable(name)}" if name else ""
    yield f"Stopping took {duration(took)}, {percent(took, trace.duration)} of the whole{part}."
