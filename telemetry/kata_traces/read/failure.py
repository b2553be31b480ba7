"""Why a sandbox failed: the one text of it, for the terminal, `explain`, the page and whoever else tells it.

The words are those of the error that ended the sandbox, which the runtime printed: its message is the status of the
root (or of the sandbox's lifetime, where the root is about the start only), its hint the attribute `kata.hint`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kata_telemetry.conventions import FAILURE_HINT
from kata_traces.read.cells import crop, printable
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.read.units import duration
from kata_traces.store.abandoned import CUT_OFF, HEARTBEAT, KILLED

__all__ = ["MAX_LINE", "MAX_SAID", "Failure", "failure_of", "path_to"]

# Lines of a message, and characters of a line, that are told.
MAX_SAID: Final = 24
MAX_LINE: Final = 640
# Whose status says how the sandbox ended.
LIFETIME: Final = "sandbox"
KILLED_HINT: Final = (
    "if nobody did, the host's kernel may have for lack of memory, and says so in its log (dmesg); "
    "the VM and its helpers ended with the runtime"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """`said` is the message's lines, `hint` what to do or "", `span` where it began, `where` that in words.

    Without `fatal` something failed, but the sandbox did not end by it.
    """

    said: list[str]
    hint: str
    span: TraceSpan
    where: str
    fatal: bool

    def lines(self) -> Iterator[str]:
        """All of it, as it is told: printable, bounded."""
        yield from self.said
        if self.hint:
            yield f"hint: {self.hint}"
        yield self.where


def failure_of(trace: Trace) -> Failure | None:
    """Why `trace` failed; None where nothing did."""
    if trace.meta.outcome == KILLED or trace.root.message == CUT_OFF:
        return _killed(trace)
    verdict = _verdict(trace)
    span = _began(trace, verdict) if verdict is not None else first_failure(trace)
    if span is None:
        return None
    teller = verdict or span
    message = teller.message or _recorded(teller) or "it left no message"
    hint = teller.attributes.get(FAILURE_HINT, "")
    return Failure(_lines(message), _one_line(str(hint)), span, _where(span, teller), verdict is not None)


def _killed(trace: Trace) -> Failure:
    going_on = [span for span in trace.walk() if span.message == CUT_OFF or span.open]
    last = max(going_on, key=lambda span: (span.depth, span.start), default=trace.root)
    after = f"The runtime was killed {duration(trace.duration)} after its start, give or take {duration(HEARTBEAT)}"
    return Failure([after], KILLED_HINT, last, f"It was in {path_to(last)}.", fatal=True)


def _verdict(trace: Trace) -> TraceSpan | None:
    """The span whose status says how the sandbox ended, where that was an error."""
    lifetimes = [s for s in trace.root.children if s.name == LIFETIME and s.service == trace.root.service]
    return next((span for span in (trace.root, *lifetimes) if span.failed), None)


def _began(trace: Trace, verdict: TraceSpan) -> TraceSpan:
    """Where the error that ended the sandbox was first seen: errors travel upwards, and may be said better there."""
    said = verdict.message
    same = [s for s in trace.walk() if s.failed and s is not verdict and s.message and s.message in said]
    if same:
        return min(same, key=lambda span: (-span.depth, span.rule.role, span.end))
    return first_failure(trace) or verdict


def first_failure(trace: Trace) -> TraceSpan | None:
    """The deepest failed span of the failure that came first: errors travel upwards."""
    inside: set[str] = set()
    leaves = []
    for span in reversed(list(trace.walk())):
        if span.failed and span.span_id not in inside:
            leaves.append(span)
        if (span.failed or span.span_id in inside) and span.parent:
            inside.add(span.parent.span_id)
    return min(leaves, key=lambda span: (span.end, -span.depth), default=None)


def _recorded(span: TraceSpan) -> str:
    return next((str(e.attributes.get("exception.message", "")) for e in span.events if e.name == "exception"), "")


def _lines(message: str) -> list[str]:
    lines = [crop(printable(line.expandtabs()).rstrip(), MAX_LINE) for line in message.strip().splitlines()]
    more = len(lines) - MAX_SAID
    return [*lines[:MAX_SAID], f"… and {more} more lines"] if more > 0 else lines


def _one_line(text: str) -> str:
    return crop(printable(" ".join(text.split())), MAX_LINE)


def _where(span: TraceSpan, teller: TraceSpan) -> str:
    who = f"{span.lane.value}, seen by {printable(span.service)}"
    at = f"It was seen first in {printable(span.name)[:100]} ({who}), after {duration(span.duration)}"
    said = _one_line(span.message)
    words = f": {said}" if said and span.message not in teller.message else ""
    return crop(f"{at}{words}; {path_to(span)}.", MAX_LINE)


def path_to(span: TraceSpan) -> str:
    """The names from the root to `span`, the middle left out where there are many."""
    names: list[str] = []
    above: TraceSpan | None = span
    while above is not None and len(names) < 100:
        names.append(printable(above.name)[:60])
        above = above.parent
    names.reverse()
    if len(names) > 7:
        names[3:-3] = ["…"]
    return " › ".join(names)  # noqa: RUF001 - reads better than >
