"""What waits for a store's writer, and what is open: filled by any thread, emptied by the writer's."""

import threading
from collections import Counter, deque
from typing import Final

from kata_telemetry.span import Span
from kata_telemetry.wire import MAX_FRAME

__all__ = ["Queue"]

# Spans that may wait for the writer; a container start has some 150.
QUEUE_SPANS: Final = 16_384
# Bytes of batches from the guest that may wait for the writer.
QUEUE_BYTES: Final = 4 * 1024 * 1024


class Queue:
    """No method blocks or raises. `root` is the first span that was opened, `open` has all in the order they began."""

    def __init__(self) -> None:
        self.open: dict[Span, None] = {}
        self.root: Span | None = None
        self.refused_batches = 0
        self._items: deque[Span | bytes] = deque()
        self._bytes = 0
        self._lost: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, span: Span) -> bool:
        """Take an ended span; False where there is no room, and then it is counted."""
        if len(self._items) >= QUEUE_SPANS:
            self.lose("queue full", 1)
            self.open.pop(span, None)
            return False
        self._items.append(span)
        # Only now: a span is always in one of the two.
        self.open.pop(span, None)
        return True

    def add_batch(self, data: bytes) -> bool:
        """Take a request of the guest; False where it is too large, or there is no room."""
        with self._lock:
            if len(data) > MAX_FRAME or self._bytes + len(data) > QUEUE_BYTES:
                self.refused_batches += 1
                return False
            self._bytes += len(data)
        self._items.append(data)
        return True

    def take(self, most: int) -> tuple[list[Span], bytes | None]:
        """The next spans, at most so many, up to the next batch of the guest; and that, where it is next."""
        spans: list[Span] = []
        while self._items and len(spans) < most:
            item = self._items.popleft()
            if isinstance(item, bytes):
                with self._lock:
                    self._bytes -= len(item)
                return spans, item
            spans.append(item)
        return spans, None

    @property
    def bytes(self) -> int:
        """Of the guest's batches that wait."""
        return self._bytes

    def open_spans(self) -> list[Span]:
        """Those that have not ended."""
        return list(self.open)

    def lose(self, reason: str, count: int) -> None:
        """Count spans that are not in the trace."""
        with self._lock:
            self._lost[reason] += count

    def lost(self) -> dict[str, int]:
        """What was counted."""
        with self._lock:
            return dict(self._lost)
