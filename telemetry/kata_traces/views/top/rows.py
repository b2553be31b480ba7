"""What `trace top` shows, without a terminal: which spans are rows, and which part of the time is looked at."""

from dataclasses import dataclass, field

from kata_traces.read.analysis import critical_path
from kata_traces.read.cells import printable
from kata_traces.read.trace import Trace, TraceSpan

__all__ = ["MIN_WINDOW", "Rows"]

# The shortest time that can be looked at, ns.
MIN_WINDOW = 1000


@dataclass
class Rows:
    """A trace with what is folded, chosen, searched and zoomed to. Times are host time, ns."""

    trace: Trace
    folded: set[str] = field(default_factory=set)
    at: int = 0
    query: str = ""
    only_critical: bool = False
    only_failed: bool = False

    def __post_init__(self) -> None:
        self.begin = self.end = 0
        self.bounds = 0, 0
        self.replace(self.trace)

    def replace(self, trace: Trace) -> None:
        """Show a newer state of the trace; what was chosen and zoomed to stays, and what showed all shows all."""
        whole = self.begin == self.end or (self.begin, self.end) == self.bounds
        chosen = self.rows[self.at].span_id if self.begin != self.end and self.rows else ""
        self.trace = trace
        first = min(span.start for span in trace.spans)
        self.bounds = first, max(*(span.end for span in trace.spans), first + 1)
        if whole:
            self.begin, self.end = self.bounds
        self.critical: dict[str, list[tuple[int, int]]] = {}
        for segment in critical_path(trace.root):
            self.critical.setdefault(segment.span.span_id, []).append((segment.start, segment.end))
        self.list(chosen)

    @property
    def chosen(self) -> TraceSpan:
        """The span that the cursor is on."""
        return self.rows[self.at]

    def waited(self, span: TraceSpan) -> int:
        """How long (ns) the end of the trace waited for `span` alone."""
        return sum(end - start for start, end in self.critical.get(span.span_id, ()))

    def list(self, chosen: str = "") -> None:
        """Make the rows anew; the cursor stays on the span `chosen`, where it is among them."""
        self.rows: list[TraceSpan] = []
        pending = list(reversed(self.trace.roots))
        kept = self._kept() if self.only_critical or self.only_failed else None
        while pending:
            span = pending.pop()
            if kept is not None and span.span_id not in kept:
                continue
            self.rows.append(span)
            if span.span_id not in self.folded:
                pending += reversed(span.children)
        if not self.rows:
            self.rows = [self.trace.root]
        found = next((index for index, span in enumerate(self.rows) if span.span_id == chosen), None)
        self.at = found if found is not None else min(self.at, len(self.rows) - 1)

    def _kept(self) -> set[str]:
        """What the filters leave, with what is above it."""
        kept: set[str] = set()
        least = self.trace.duration // 200
        for span in self.trace.walk():
            if (self.only_failed and span.failed) or (self.only_critical and self.waited(span) > least):
                above: TraceSpan | None = span
                while above is not None and above.span_id not in kept:
                    kept.add(above.span_id)
                    above = above.parent
        return kept

    def filter(self, *, critical: bool | None = None, failed: bool | None = None) -> None:
        """Turn a filter on or off."""
        chosen = self.chosen.span_id
        self.only_critical = self.only_critical if critical is None else critical
        self.only_failed = self.only_failed if failed is None else failed
        self.list(chosen)

    def move(self, by: int) -> None:
        """The cursor, by so many rows."""
        self.at = min(max(self.at + by, 0), len(self.rows) - 1)

    def fold(self, *, shut: bool) -> None:
        """Fold what is chosen, or go to its parent where it is; unfold it, or go to its first child."""
        span = self.chosen
        if shut and span.children and span.span_id not in self.folded:
            self.folded.add(span.span_id)
        elif shut and span.parent is not None:
            span = span.parent
        elif not shut and span.span_id in self.folded:
            self.folded.discard(span.span_id)
        elif not shut and span.children:
            self.move(1)
            return
        self.list(span.span_id)

    def fold_all(self, *, shut: bool) -> None:
        """Everything below the root's children, or nothing."""
        chosen = self.chosen.span_id
        self.folded = {s.span_id for s in self.trace.spans if s.children and s.depth >= 1} if shut else set()
        self.list(chosen)

    def search(self, text: str, *, step: int = 1) -> bool:
        """Go to the next (or, by -1, the last) span after the cursor whose name, attributes or message have `text`."""
        self.query = text
        everything = list(self.trace.walk())
        at = everything.index(self.chosen)
        order = everything[at + 1 :] + everything[: at + 1]
        if step < 0:
            order = everything[:at][::-1] + everything[at:][::-1]
        found = next((span for span in order if self.matches(span)), None) if text else None
        if found is None:
            return False
        above = found.parent
        while above is not None:
            self.folded.discard(above.span_id)
            above = above.parent
        self.only_critical = self.only_failed = False
        self.list(found.span_id)
        return True

    def matches(self, span: TraceSpan) -> bool:
        """Whether what is searched for is in it."""
        if not self.query:
            return False
        text = self.query.lower()
        words = [span.name, span.service, span.message, *(f"{k}={v}" for k, v in span.attributes.items())]
        words += [event.name for event in span.events]
        return any(text in printable(word).lower() for word in words)

    def next_critical(self, step: int) -> None:
        """To the next span on the critical path that is a row."""
        order = range(self.at + step, len(self.rows) if step > 0 else -1, step)
        least = self.trace.duration // 200
        self.at = next((i for i in order if self.waited(self.rows[i]) > least), self.at)

    def zoom(self, factor: float, around: int | None = None) -> None:
        """Look at `factor` of the time that is looked at now, around a moment (the middle by default)."""
        middle = around if around is not None else (self.begin + self.end) // 2
        length = max(int((self.end - self.begin) * factor), MIN_WINDOW)
        share = (middle - self.begin) / (self.end - self.begin)
        self._look(middle - int(length * share), length)

    def zoom_to(self, span: TraceSpan) -> None:
        """Look at a span, with a twentieth of its time on either side."""
        length = max(span.duration, MIN_WINDOW)
        self._look(span.start - length // 20, length + length // 10)

    def zoom_all(self) -> None:
        """Look at the whole trace."""
        self.begin, self.end = self.bounds

    def pan(self, share: float) -> None:
        """Look further right (or left, below 0), by a share of what is looked at."""
        self._look(self.begin + int((self.end - self.begin) * share), self.end - self.begin)

    def _look(self, begin: int, length: int) -> None:
        first, last = self.bounds
        length = min(length, last - first)
        self.begin = min(max(begin, first), last - length)
        self.end = self.begin + length
