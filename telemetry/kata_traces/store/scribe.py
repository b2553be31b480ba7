"""What a store's writer does on its own thread: spans to lines, by way of OpenTelemetry's SDK, and notes about them."""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_telemetry import otlp
from kata_telemetry.conventions import LABELS
from kata_telemetry.span import Span, SpanContext, Status, Tracer
from kata_traces.store.quarantine import Quarantine, host_time
from kata_traces.store.queue import Queue
from kata_traces.store.store import Meta, Store, save_meta, write_meta

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from kata_traces.sdk.pipeline import Pipeline

__all__ = ["Lines", "Scribe"]

# A store never grows beyond this, whatever happens in the sandbox.
MAX_STORE: Final = 64 * 1024 * 1024
# Spans per line, and bytes of its request: collectors take 4 MiB at a time.
BATCH: Final = 256
MAX_LINE: Final = 1024 * 1024
# Characters of a label or a failure in meta.json.
MAX_LABEL: Final = 300
# Spans that are open longer than this (ns) are journaled, so that they are seen before they end.
LASTING: Final = 250_000_000


class Lines:
    """The files of a store that grow by lines; `size` is that of the whole store, in bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._files: dict[Path, int] = {}

    def append(self, path: Path, line: str) -> bool:
        """Append a line as a whole, or nothing."""
        content = line.encode() + b"\n"
        if self._size + len(content) > MAX_STORE:
            return False
        try:
            fd = self._files.get(path)
            if fd is None:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._files[path] = fd
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":
                content = b"\n" + content  # whoever wrote before died in the middle of a line
            try:
                written = 0
                while written < len(content):
                    written += os.write(fd, content[written:])
            except OSError:
                os.ftruncate(fd, end)
                raise
        except OSError:
            return False
        self._size += len(content)
        return True

    def close(self) -> None:
        """Once."""
        for fd in self._files.values():
            os.close(fd)


class Scribe:
    """For the writer's thread alone."""

    def __init__(self, store: Store, meta: Meta, queue: Queue) -> None:
        self.store = store
        self.meta = meta
        self.lines = Lines(store.size())
        self._quarantine = Quarantine(meta.sandbox_id, since=meta.start)
        if meta.trace_id:
            self._quarantine.trace_id = bytes.fromhex(meta.trace_id)
        if meta.root_id:
            self._quarantine.root_id = bytes.fromhex(meta.root_id)
        self._queue = queue
        self._journaled: set[int] = set()
        self._sdk: Pipeline | None = None

    def finish(self) -> bool:
        """The end: what waits, what is open, and what is known of the trace. Whether there was anything to write."""
        appended = self.write_all()
        self._journal(self._queue.open_spans())
        self.meta.end = time.time_ns()
        self._describe()
        self._count_losses()
        if self.meta.lost:
            appended |= self._append([self._loss_span()])
        if not self._queue.open:
            self.store.open_spans.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            save_meta(self.store, self.meta)
        if self._sdk is not None:
            self._sdk.close()
        return appended

    def note_root(self) -> None:
        """As soon as the trace has a root, meta.json says so: it can be shown from then on, whatever happens."""
        root, quarantine = self._queue.root, self._quarantine
        if root is not None and quarantine.root_id is None:
            quarantine.trace_id = root.context.trace_id.to_bytes(16, "big")
            quarantine.root_id = root.context.span_id.to_bytes(8, "big")
            self.meta.root_name = root.name
            self.meta.root_parent_id = f"{root.parent_id:016x}" if root.parent_id else ""
            self.meta.start = min(self.meta.start, root.tracer.clock.to_host(root.start))
            self._describe()
            quarantine.now = host_time(root.tracer.clock)
            quarantine.since = min(quarantine.since, self.meta.start)
        trace_id, root_id = (quarantine.trace_id or b"").hex(), (quarantine.root_id or b"").hex()
        if (trace_id, root_id) != (self.meta.trace_id, self.meta.root_id):
            self.meta.trace_id, self.meta.root_id = trace_id, root_id
            with contextlib.suppress(OSError):
                write_meta(self.store, self.meta)

    def _describe(self) -> None:
        """Into meta.json what lists of traces show, so that they need not read spans."""
        root = self._queue.root
        if root is None:
            return
        attributes = root.attributes
        self.meta.labels = {key: str(attributes[key])[:MAX_LABEL] for key in LABELS if key in attributes}
        teller = next((s for s in (root, root.tracer.lifetime) if s is not None and s.status is Status.ERROR), None)
        if teller is not None:
            self.meta.failure = teller.message.partition("\n")[0][:MAX_LABEL]

    def until_journal(self) -> float | None:
        """Seconds until the next open span has lasted long enough to be journaled."""
        starts = [span.start for span in self._queue.open_spans() if span.context.span_id not in self._journaled]
        if not starts:
            return None
        return max(min(starts) + LASTING - time.monotonic_ns(), 0) / 1e9

    def write_all(self) -> bool:
        """Write what waits; whether that was anything."""
        self.note_root()
        lasting = time.monotonic_ns() - LASTING
        self._journal(span for span in self._queue.open_spans() if span is self._queue.root or span.start <= lasting)
        appended = False
        while self._queue:
            spans, batch = self._queue.take(BATCH)
            appended |= self._append(spans)
            if batch is not None:
                appended |= self._append_guest(batch)
        return appended

    def _journal(self, spans: Iterable[Span]) -> None:
        fresh = [span for span in spans if span.context.span_id not in self._journaled]
        if not fresh:
            return
        self._place(fresh)
        # Once, also where it fails: what is missing here shows when the span ends.
        self._journaled.update(span.context.span_id for span in fresh)
        told, _ = self._pipeline().tell(fresh, self.meta.sandbox_id, ended=False)
        if told:
            self.lines.append(self.store.open_spans, otlp.to_line(self._pipeline().encode(told)))

    def _place(self, spans: Iterable[Span]) -> None:
        """Put under the root what began in something that this store does not have: tracing was off then."""
        root = self._queue.root
        for span in spans:
            if root is not None and isinstance(span.parent, Span) and not span.parent.kept:
                span.parent = root

    def _append(self, spans: list[Span]) -> bool:
        if not spans:
            return False
        self._place(spans)
        for span in spans:
            self._quarantine.claim(span.context.span_id)
            self._journaled.discard(span.context.span_id)
        self._journal_above(spans)
        told, failed = self._pipeline().tell(spans, self.meta.sandbox_id)
        if failed:
            self._queue.lose("not encodable", failed)
        return self._append_told(told)

    def _append_told(self, told: "Sequence[ReadableSpan]") -> bool:
        request = self._pipeline().encode(told)
        if len(told) > 1 and request.ByteSize() > MAX_LINE:
            half = len(told) // 2
            return bool(self._append_told(told[:half]) | self._append_told(told[half:]))
        return self._append_spans(otlp.to_line(request), len(told))

    def _journal_above(self, spans: Iterable[Span]) -> None:
        """Journal the open parents of what is about to be written: nothing in a store lacks its parent."""
        above: dict[Span, None] = {}
        for span in spans:
            parent = span.parent
            while isinstance(parent, Span) and parent not in above and parent in self._queue.open:
                above[parent] = None
                parent = parent.parent
        self._journal(above)

    def _append_guest(self, data: bytes) -> bool:
        known = {span.context.span_id.to_bytes(8, "big"): span for span in self._queue.open_spans()}
        for span in known.values():
            self._quarantine.claim(span.context.span_id)
        request = self._quarantine.rebuild(data)
        if request is None:
            return False
        parents = {span.parent_span_id for span in request.resource_spans[0].scope_spans[0].spans}
        called = [known[parent] for parent in parents if parent in known]
        self._journal_above(called)
        self._journal(span for span in called if span in self._queue.open)
        self.note_root()
        return self._append_told(self._pipeline().tell_request(request))

    def _append_spans(self, line: str, spans: int) -> bool:
        if not spans:
            return False
        if not self.lines.append(self.store.spans, line):
            self._queue.lose("store full or not writable", spans)
            return False
        self.meta.spans += spans
        return True

    def _count_losses(self) -> None:
        tally = self._quarantine.tally
        tally.batches += self._queue.refused_batches
        lost = self._queue.lost()
        for reason, count in tally.lost().items():
            lost[reason] = lost.get(reason, 0) + count
        self.meta.lost = lost

    def _loss_span(self) -> Span:
        """What is missing, as a span, so that it is seen wherever the trace is seen."""
        parent = None
        if self._quarantine.trace_id and self._quarantine.root_id:
            parent = SpanContext(
                int.from_bytes(self._quarantine.trace_id, "big"), int.from_bytes(self._quarantine.root_id, "big")
            )
        common = {
            "source": "runtime",
            "sandbox_id": self.meta.sandbox_id,
            "package": "telemetry",
            "subsystem": "store",
        }
        tracer = self._queue.root.tracer if self._queue.root else Tracer("kata", lambda _: None)
        span = Tracer(tracer.service, lambda _: None, clock=tracer.clock, common=common).start(
            "spansLost", parent=parent, attributes=self.meta.lost
        )
        if self._queue.root and self._queue.root.end:
            span.start = self._queue.root.end  # inside its parent
        details = ", ".join(f"{count} {reason}" for reason, count in self.meta.lost.items())
        span.event("lost", at=span.start, what=details)
        span.fail(f"spans are missing: {details}")
        span.end = span.start
        return span

    def _pipeline(self) -> "Pipeline":
        """OpenTelemetry's SDK: imported on this thread, and only where something is written."""
        if self._sdk is None:
            from kata_traces.sdk.pipeline import Pipeline

            self._sdk = Pipeline()
        return self._sdk
