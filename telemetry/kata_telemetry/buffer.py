"""The agent's spans on their way to the host.

spans = SpanBuffer()
tracer = Tracer("kata-agent", spans.sink, clock=GuestClock(), common={"source": "agent"})
...                                   # boot: spans are kept, nobody knows yet whether they are wanted
spans.enable()                        # CreateSandbox said so
spans.begin()                         # the first process runs: now there is time to encode
async for batch in spans.drain():     # StreamSpans
    yield SpanBatch(otlp=batch.otlp, dropped=batch.dropped)
...
spans.close()                         # DestroySandbox: drain() ends after the last span
"""

import asyncio
import contextlib
import enum
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple

from kata_telemetry import otlp
from kata_telemetry.span import Span
from kata_telemetry.wire import MAX_FRAME

__all__ = ["Batch", "SpanBuffer"]

CAPACITY: Final = 4096
# Spans per batch, and how long (seconds) to let them gather: until none has come for a while, as what is at work should
# not wait for what is told of it, and a batch costs an emulated guest more than the spans in it.
BATCH: Final = 256
FEW: Final = 16  # are encoded sooner than a thread takes over
QUIET: Final = 0.25
LINGER: Final = 1.0
# When to begin where nobody calls begin(), in seconds.
BEGIN_AFTER: Final = 10.0


class Batch(NamedTuple):
    """A serialized ExportTraceServiceRequest, and how many spans were dropped since the last one."""

    otlp: bytes
    dropped: int


class _State(enum.Enum):
    UNDECIDED = enum.auto()
    ENABLED = enum.auto()
    DISABLED = enum.auto()
    CLOSED = enum.auto()


class SpanBuffer:
    """Ended spans until they are drained. Bounded: the oldest are dropped first, and counted."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._spans: deque[Span] = deque()
        self._dropped = 0
        self._taken = 0
        self._lock = threading.Lock()
        self._state = _State.UNDECIDED
        self._begun = False
        self._waiter: _Waiter | None = None

    @property
    def enabled(self) -> bool:
        """Whether spans are kept to be sent."""
        return self._state is _State.ENABLED

    def __len__(self) -> int:
        return len(self._spans)

    def sink(self, span: Span) -> None:
        """Take an ended span; any thread, neither blocks nor raises."""
        if self._state in {_State.DISABLED, _State.CLOSED}:
            return
        with self._lock:
            if len(self._spans) >= self._capacity:
                self._spans.popleft()
                self._dropped += 1
            self._spans.append(span)
            self._taken += 1
        self._notify()

    def enable(self) -> None:
        """Spans are wanted, those before as well. The clock's offset to the host should be known by now."""
        if self._state is not _State.CLOSED:
            self._state = _State.ENABLED
        self._notify()

    def disable(self) -> None:
        """No spans are wanted, and those kept are thrown away; `enable` begins anew. A drain that runs just waits."""
        if self._state is not _State.CLOSED:
            self._state = _State.DISABLED
        self.clear()

    def clear(self) -> None:
        """Forget what is kept: it belongs to another sandbox (this guest is a clone)."""
        with self._lock:
            self._spans.clear()
            self._dropped = 0

    def begin(self) -> None:
        """There is time now to encode. Without this call that happens after 10 s, or when half full."""
        self._begun = True
        self._notify()

    def close(self) -> None:
        """No more spans: `drain` ends after what is there."""
        if self._state is not _State.ENABLED:
            self.clear()
        self._state = _State.CLOSED
        self._notify()

    async def drain(self) -> AsyncGenerator[Batch, None]:
        """Batches of at most 256 KiB, until `close`.

        One caller at a time (RuntimeError). Where the caller goes away, the next one gets what this one did not take;
        the batch in its hands may come again.
        """
        if self._waiter:
            raise RuntimeError("spans are being drained already; the agent has one StreamSpans at a time")
        waiter = self._waiter = _Waiter()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_AFTER):
                    await waiter.until(lambda: self._begun or self._hurried)
            while True:
                await waiter.until(lambda: self._closed or (self.enabled and bool(self._spans)))
                await self._gather(waiter)
                spans, dropped = self._take()
                if not spans:
                    if dropped:
                        yield Batch(b"", dropped)
                    return
                async with contextlib.aclosing(self._encode(spans, dropped)) as batches:
                    async for batch in batches:
                        yield batch
        finally:
            self._waiter = None

    async def _gather(self, waiter: "_Waiter") -> None:
        """Wait for more to come, see QUIET and LINGER."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._hurried:
                    taken = self._taken
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(QUIET):
                            await waiter.until(lambda: self._hurried)
                    if taken == self._taken:
                        return

    @property
    def _closed(self) -> bool:
        return self._state is _State.CLOSED

    @property
    def _hurried(self) -> bool:
        return self._closed or (self.enabled and len(self._spans) >= min(BATCH, self._capacity // 2))

    def _notify(self) -> None:
        waiter = self._waiter
        if waiter and waiter.condition():
            waiter.notify()

    def _take(self) -> tuple[list[Span], int]:
        with self._lock:
            spans = [self._spans.popleft() for _ in range(min(BATCH, len(self._spans)))]
            dropped, self._dropped = self._dropped, 0
        return spans, dropped

    def _give_back(self, spans: list[Span], dropped: int) -> None:
        with self._lock:
            self._spans.extendleft(reversed(spans))
            self._dropped += dropped

    async def _encode(self, spans: list[Span], dropped: int) -> AsyncGenerator[Batch, None]:
        pending = [spans]
        try:
            while pending:
                part = pending[0]
                encoded = otlp.encode(part) if len(part) <= FEW else await asyncio.to_thread(otlp.encode, part)
                if len(encoded.data) <= MAX_FRAME:
                    yield Batch(encoded.data, dropped + encoded.failed)
                    dropped = 0
                    del pending[0]
                elif len(part) > 1:
                    pending[:1] = [part[: len(part) // 2], part[len(part) // 2 :]]
                else:
                    dropped += 1
                    del pending[0]
        finally:
            self._give_back([span for part in pending for span in part], dropped)


class _Waiter:
    """One task that waits for a condition which any thread may bring about."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._event = asyncio.Event()
        self.condition: Callable[[], bool] = lambda: False

    async def until(self, condition: Callable[[], bool]) -> None:
        self.condition = condition
        try:
            while not condition():
                self._event.clear()
                if not condition():
                    await self._event.wait()
        finally:
            self.condition = lambda: False

    def notify(self) -> None:
        if threading.get_ident() == self._thread:
            self._event.set()
        elif not self._event.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the task
                self._loop.call_soon_threadsafe(self._event.set)
