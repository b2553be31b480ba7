"""Rules that a trace is held to, for CI: each broken one is a line that says what, how much, and where."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kata_traces.read.analysis import split
from kata_traces.read.cells import headline, printable
from kata_traces.read.stages import Role, Stage
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.read.units import duration, percent

__all__ = ["STAGE_PREFIX", "Rules", "check", "summary"]

# `stage:kernel` is a budget of a stage, anything else of spans of that name.
STAGE_PREFIX = "stage:"
# Names in one line, at most.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Rules:
    """What a trace must keep to; times in ns, `unaccounted` in percent of the root.

    The defaults are what any whole trace keeps to: nothing lost, no orphan, clocks that agree to the promised ms.
    """

    min_spans: int = 2
    orphans: int = 0
    negative: int = 0
    lost: int = 0
    unaccounted: float = 10.0
    misfit: int = 1_000_000
    errors: bool = True
    services: tuple[str, ...] = ()
    budgets: Mapping[str, int] = field(default_factory=dict)


def check(trace: Trace, rules: Rules) -> list[str]:
    """One line for each rule that `trace` breaks."""
    return [line for rule in _RULES for line in rule(trace, rules)]


def summary(trace: Trace) -> str:
    """A trace that keeps to all rules, in a line."""
    parts = split(trace)
    return (
        f"{len(trace.spans)} spans of {' and '.join(printable(name) for name in trace.services)}, "
        f"{duration(parts.total)}, {percent(parts.unaccounted, parts.total)} unaccounted"
    )


def _spans(trace: Trace, rules: Rules) -> Iterator[str]:
    if len(trace.spans) < rules.min_spans:
        yield f"spans: {len(trace.spans)}, expected at least {rules.min_spans}"


def _services(trace: Trace, rules: Rules) -> Iterator[str]:
    for name in rules.services:
        if name not in trace.services:
            yield f"service {printable(name)}: no span; there are {', '.join(map(printable, trace.services))}"


def _orphans(trace: Trace, rules: Rules) -> Iterator[str]:
    if len(trace.orphans) > rules.orphans:
        count = f"{len(trace.orphans)} spans have no parent here{_allowed(rules.orphans)}"
        yield f"orphans: {count}: {_names(trace.orphans)}"


def _negative(trace: Trace, rules: Rules) -> Iterator[str]:
    negative = trace.negative()
    if len(negative) > rules.negative:
        yield f"negative: {len(negative)} spans end before they start{_allowed(rules.negative)}: {_names(negative)}"


def _lost(trace: Trace, rules: Rules) -> Iterator[str]:
    lost = sum(trace.meta.lost.values()) + trace.broken
    if lost > rules.lost:
        reasons = [f"{count} {printable(reason)}" for reason, count in trace.meta.lost.items()]
        reasons += [f"{trace.broken} lines that can't be read"] if trace.broken else []
        yield f"lost: {lost}{_allowed(rules.lost)}: {', '.join(reasons[: NAMED + 1])}"


def _unaccounted(trace: Trace, rules: Rules) -> Iterator[str]:
    parts = split(trace)
    # Of a trace without length everything or nothing is unaccounted.
    if parts.unaccounted * 100 > rules.unaccounted * parts.total:
        share = percent(parts.unaccounted, parts.total)
        longest = parts.gaps[0]
        yield (
            f"unaccounted: {share} of {duration(parts.total)}, allowed {rules.unaccounted:g} %; "
            f"the longest stretch, {duration(longest.end - longest.start)}, "
            f"begins {duration(longest.start - trace.root.start)} after the start"
        )


def _misfits(trace: Trace, rules: Rules) -> Iterator[str]:
    found: list[tuple[int, str, TraceSpan]] = []
    for span, before, after in trace.misfits(rules.misfit):
        if before > rules.misfit:
            found.append((before, "before", span))
        # A task may outlive on purpose the span that it began in. A call of the other side may not: its caller waited.
        if after > rules.misfit and _is_call(span):
            found.append((after, "after", span))
    if found:
        amount, side, span = max(found, key=lambda item: item[0])
        parent = span.parent.name if span.parent else ""
        yield (
            f"misfit: {len(found)} spans lie outside their parent by more than {duration(rules.misfit)}: "
            f"{printable(span.name)} {'starts' if side == 'before' else 'ends'} {duration(amount)} {side} "
            f"{printable(parent)}"
        )


def _is_call(span: TraceSpan) -> bool:
    crosses = span.parent is not None and span.parent.service != span.service
    return crosses and span.rule.role is not Role.LASTS and not (span.open or (span.parent and span.parent.open))


def _errors(trace: Trace, rules: Rules) -> Iterator[str]:
    failed = [span for span in trace.walk() if span.failed]
    if failed and not rules.errors:
        deepest = max(failed, key=lambda span: span.depth)
        message = headline(deepest.message)[:200] or "failed"
        yield f"errors: {len(failed)} spans failed: {_names(failed)}; the deepest: {message}"


def _budgets(trace: Trace, rules: Rules) -> Iterator[str]:
    stages = split(trace).stages
    for name, budget in rules.budgets.items():
        if name.startswith(STAGE_PREFIX):
            stage = name.removeprefix(STAGE_PREFIX)
            took = stages.get(Stage(stage), 0)
            if took > budget:
                yield f"budget: stage {stage} took {duration(took)}, allowed {duration(budget)}"
            continue
        spans = [span for span in trace.spans if span.name == name]
        longest = max(spans, key=lambda span: span.duration, default=None)
        if longest is None:
            yield f"budget: there is no span {printable(name)} to hold to {duration(budget)}"
        elif longest.duration > budget:
            which = f", the longest of {len(spans)}," if len(spans) > 1 else ""
            yield f"budget: {printable(name)}{which} took {duration(longest.duration)}, allowed {duration(budget)}"


def _allowed(count: int) -> str:
    return f", allowed {count}" if count else ""


def _names(spans: list[TraceSpan]) -> str:
    names = list(dict.fromkeys(printable(span.name)[:80] for span in spans))
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


_RULES: tuple[Callable[[Trace, Rules], Iterator[str]], ...] = (
    _spans,
    _services,
    _lost,
    _orphans,
    _negative,
    _misfits,
    _errors,
    _unaccounted,
    _budgets,
)
