"""The flight recorder: the last spans of a sandbox whose trace nobody asked for, in case somebody will.

It costs what making a span costs (tests/bench/spans.py); nothing is encoded and nothing is written. A trace that begins
later, because the start failed or somebody switched tracing on, begins with what is here.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from kata_telemetry.span import Span, Tracer

__all__ = ["CAPACITY", "Recorder"]

# A start has some 70 spans on the host, and some 40 in the guest.
CAPACITY: Final = 512


class Recorder:
    """The last `capacity` ended spans, and all that are open. Any thread may use it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ended: deque[Span] = deque(maxlen=capacity)
        self._open: set[Span] = set()
        # Bound methods of C, which never let another thread in between.
        self.opened = self._open.add
        self._forget = self._open.discard

    def attach(self, tracer: Tracer) -> None:
        """Record the spans of `tracer` from now on."""
        tracer.opened, tracer.ended = self.opened, self.ended

    def ended(self, span: Span) -> None:
        """Take an ended span."""
        self._ended.append(span)
        self._forget(span)

    def __len__(self) -> int:
        return len(self._ended)

    def since(self) -> int:
        """The local reading (ns) from which on it has every span; 0 where none has been dropped."""
        full = len(self._ended) == self._ended.maxlen
        return min((span.start for span in tuple(self._ended)), default=0) if full else 0

    def drop(self, unwanted: Iterable[Span]) -> None:
        """Forget these: there is a better account of what they tell."""
        for span in unwanted:
            with suppress(ValueError):
                self._ended.remove(span)

    def take(self, root: Span) -> tuple[list[Span], list[Span]]:
        """All ended spans, and the open ones, both without `root`; it is empty afterwards."""
        open_spans, ended = tuple(self._open), tuple(self._ended)
        self._ended.clear()
        self._open.clear()
        over = {span for span in ended if span is not root}
        still = {span for span in open_spans if span is not root} - over
        return sorted(over, key=lambda span: span.end), sorted(still, key=lambda span: span.start)
