"""Writes one sandbox's trace into its store, beside the work that is traced and never in its way.

    with StoreWriter.open(trace_dir, sandbox_id, name="web", command="nginx") as writer:
        tracer = writer.tracer("kata", source="runtime")
        root = site.root(tracer, "rootSpan")
        ...                      # start QEMU
        writer.begin()           # now there is time to write
        ...
        root.finish()
        writer.close(timeout=2.0, outcome="exit 0")

A thread takes spans from a bounded queue. What had to be dropped is counted, in meta.json and as a span of its own.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kata_common.files import Lock
from kata_telemetry import otlp
from kata_telemetry.conventions import LABELS
from kata_telemetry.recorder import Recorder
from kata_telemetry.span import Level, Span, SpanContext, Status, Tracer, Value
from kata_telemetry.wire import MAX_FRAME
from kata_traces.store.abandoned import HEARTBEAT
from kata_traces.store.errors import StoreError
from kata_traces.store.quarantine import Quarantine, host_time
from kata_traces.store.store import Meta, Retention, Store, move_aside, prune, save_meta, write_meta

__all__ = ["StoreWriter"]

# Spans that may wait for the writer; a container start has some 150.
QUEUE_SPANS: Final = 16_384
# Bytes of batches from the guest that may wait for the writer.
QUEUE_BYTES: Final = 4 * 1024 * 1024
# A store never grows beyond this, whatever happens in the sandbox.
MAX_STORE: Final = 64 * 1024 * 1024
# Spans per line, and bytes of its request: collectors take 4 MiB at a time.
BATCH: Final = 256
MAX_LINE: Final = 1024 * 1024
# Characters of a label or a failure in meta.json.
MAX_LABEL: Final = 300
# How long the writer lets spans gather, in seconds; readers of a live trace are this much behind.
LINGER: Final = 0.2
# Spans that are open longer than this (ns) are journaled, so that they are seen before they end.
LASTING: Final = 250_000_000
# When to begin where nobody calls begin(), in seconds.
BEGIN_AFTER: Final = 1.0


class StoreWriter:
    """The writer of one store.

    `sink`, `opened` and `write_otlp` may be called from any thread, don't block and don't raise.
    """

    def __init__(self, store: Store, meta: Meta, lock: Lock, retention: Retention) -> None:
        """Use `StoreWriter.open`."""
        self.store = store
        # Called on the writer's thread after spans were appended: an exporter may look.
        self.on_append: Callable[[], None] | None = None
        self._meta = meta
        self._lock = lock
        self._retention = retention
        self._quarantine = Quarantine(meta.sandbox_id, since=meta.start)
        if meta.trace_id:
            self._quarantine.trace_id = bytes.fromhex(meta.trace_id)
        if meta.root_id:
            self._quarantine.root_id = bytes.fromhex(meta.root_id)
        self._queue: deque[Span | bytes] = deque()
        self._queued_bytes = 0
        # In the order in which they began.
        self._open: dict[Span, None] = {}
        self._journaled: set[int] = set()
        self._root: Span | None = None
        self._lost: dict[str, int] = {}
        self._lost_lock = threading.Lock()
        self._size = 0
        self._files: dict[Path, int] = {}
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._begin = threading.Event()
        self._idle = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)

    @classmethod
    def open(
        cls,
        trace_dir: Path,
        sandbox_id: str,
        *,
        name: str = "",
        command: str = "",
        trace_id: int | None = None,
        retention: Retention | None = None,
    ) -> Self:
        """Open the store of `sandbox_id` and start its writer.

        Where it exists and has this `trace_id`, it is continued (a process takes over from one that died); where it has
        another, the older trace is moved aside. Raises StoreError if it can't be written, or another process writes it.
        """
        if (
            not sandbox_id
            or sandbox_id.startswith(".")
            or not set(sandbox_id).isdisjoint("/~\0")
            or len(sandbox_id) > 200
        ):
            raise StoreError(
                f"sandbox id {sandbox_id!r} can't name a trace: 1 to 200 characters, no '/', '~' or leading '.'"
            )
        store = Store(trace_dir / sandbox_id)
        wanted = f"{trace_id:032x}" if trace_id is not None else ""
        try:
            trace_dir.mkdir(parents=True, exist_ok=True)
            if store.directory.exists() and not store.live and (not wanted or store.own_meta().trace_id != wanted):
                move_aside(store)
            store.directory.mkdir(mode=0o700, exist_ok=True)
            lock = Lock(store.lock_path)
            if not lock.acquire():
                raise StoreError(f"the trace of {sandbox_id} in {store.directory} is being written by another process")
            meta = store.own_meta()
            if not meta.start:
                meta = Meta(sandbox_id, name=name, command=Path(command).name, start=time.time_ns(), trace_id=wanted)
            meta.pid, meta.outcome, meta.end = os.getpid(), "", 0
            write_meta(store, meta)
        except OSError as error:
            raise StoreError(f"cannot keep a trace in {store.directory}: {error.strerror}") from error
        writer = cls(store, meta, lock, retention or Retention())
        writer._size = store.size()
        writer._thread.start()
        return writer

    def tracer(self, service: str, *, source: str, common: Mapping[str, Value] | None = None) -> Tracer:
        """A tracer of this process's clock whose spans go into this store."""
        attributes = {"source": source, "sandbox_id": self._meta.sandbox_id, **(common or {})}
        return Tracer(service, self.sink, opened=self.opened, common=attributes)

    def follow(self, tracer: Tracer, root: Span, recorder: Recorder | None = None, *, resume: bool = False) -> None:
        """From now on the spans of `tracer`, whose root is `root`, go into this store, and those in `recorder` as well.

        With `resume`, that is after `leave`, what happened meanwhile does not.
        """
        tracer.opened, tracer.ended = self.opened, self.sink
        # Taken after the switch: what ends meanwhile goes to the one or to the other.
        ended, open_spans = recorder.take(root) if recorder else ([], [])
        begun = [root, *ended] if not resume else []
        for span in (*begun, *open_spans):
            self.opened(span)
        for span in begun:
            if span.end:
                self.sink(span)
        for span in open_spans:
            if span.end:
                self._open.pop(span, None)

    def leave(self, tracer: Tracer, recorder: Recorder | None, level: Level) -> None:
        """The spans of `tracer` go elsewhere from now on, but for those that are open: they belong to this store."""
        mine = set(self._open)

        def ended(span: Span) -> None:
            if span in mine:
                mine.discard(span)
                self.sink(span)
            elif recorder is not None:
                recorder.ended(span)

        tracer.opened, tracer.ended = recorder.opened if recorder else None, ended
        tracer.level = level

    def opened(self, span: Span) -> None:
        """Know of a span that has started."""
        if self._root is None:
            self._root = span
        span.kept = True
        self._open[span] = None
        if not self._wake.is_set():
            self._wake.set()

    def sink(self, span: Span) -> None:
        """Take an ended span."""
        if len(self._queue) >= QUEUE_SPANS:
            self._lose("queue full", 1)
            self._open.pop(span, None)
            return
        self._queue.append(span)
        # Only now: a span is always in one of the two.
        self._open.pop(span, None)
        if not self._wake.is_set():
            self._wake.set()
        if len(self._queue) >= BATCH and not self._hurry.is_set():
            self._hurry.set()

    def write_otlp(self, data: bytes, dropped: int = 0) -> None:
        """Take a serialized ExportTraceServiceRequest from the guest; `dropped` is how many spans it says it lost."""
        if dropped:
            self._lose("dropped by the agent", min(dropped, 2**32))
        if len(data) > MAX_FRAME or self._queued_bytes + len(data) > QUEUE_BYTES:
            self._quarantine.tally.batches += 1
            return
        with self._lost_lock:
            self._queued_bytes += len(data)
        self._queue.append(data)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def started(self) -> int:
        """When the sandbox began: host time, ns."""
        root = self._root
        return min(self._meta.start, root.tracer.clock.to_host(root.start)) if root else self._meta.start

    def begin(self) -> None:
        """There is time now: write. Without this call writing begins after a second."""
        self._begin.set()

    def flush(self, timeout: float) -> bool:
        """Write what is there; False if that took longer than `timeout` seconds."""
        self._idle.clear()
        self._hurry.set()
        self._begin.set()
        self._wake.set()
        return self._idle.wait(timeout) if self._thread.is_alive() else not self._queue

    def close(self, timeout: float, outcome: str = "") -> bool:
        """Write what is left and `outcome` (how the sandbox ended); False if that took longer than `timeout` seconds.

        Spans that are still open stay in the trace as such. Calls after the first one only wait.
        """
        if not self._closing.is_set():
            self._meta.outcome = outcome or "closed"
            self._closing.set()
        self._hurry.set()
        self._begin.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(timeout=2.0, outcome="failed" if error else "")

    @property
    def lost(self) -> Mapping[str, int]:
        """After `close`: what is not in the trace, by reason."""
        return self._meta.lost

    def _lose(self, reason: str, count: int) -> None:
        with self._lost_lock:
            self._lost[reason] = self._lost.get(reason, 0) + count

    # From here on: the writer's thread.

    def _run(self) -> None:
        try:
            self._wake.wait()
            self._note_root()
            self._begin.wait(BEGIN_AFTER)
            with contextlib.suppress(OSError, StoreError):
                prune(self.store.directory.parent, self._retention, self.store.directory)
            while not self._closing.is_set():
                self._hurry.wait(LINGER)
                self._hurry.clear()
                self._wake.clear()
                if self._closing.is_set():  # its wake-up may be the one that was just cleared
                    break
                self._write_all()
                if not self._wake.is_set():
                    self._idle.set()
                self._await_work()
            self._finish()
        finally:
            for fd in self._files.values():
                os.close(fd)
            self._lock.release()
            self._idle.set()

    def _finish(self) -> None:
        self._write_all()
        self._journal(self._open_spans())
        self._meta.end = time.time_ns()
        self._describe()
        self._count_losses()
        if self._meta.lost:
            self._append([self._loss_span()])
        if not self._open:
            self.store.open_spans.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            save_meta(self.store, self._meta)

    def _note_root(self) -> None:
        """As soon as the trace has a root, meta.json says so: it can be shown from then on, whatever happens."""
        root, quarantine = self._root, self._quarantine
        if root is not None and quarantine.root_id is None:
            quarantine.trace_id = root.context.trace_id.to_bytes(16, "big")
            quarantine.root_id = root.context.span_id.to_bytes(8, "big")
            self._meta.root_name = root.name
            self._meta.root_parent_id = f"{root.parent_id:016x}" if root.parent_id else ""
            self._meta.start = min(self._meta.start, root.tracer.clock.to_host(root.start))
            self._describe()
            quarantine.now = host_time(root.tracer.clock)
            quarantine.since = min(quarantine.since, self._meta.start)
        trace_id, root_id = (quarantine.trace_id or b"").hex(), (quarantine.root_id or b"").hex()
        if (trace_id, root_id) != (self._meta.trace_id, self._meta.root_id):
            self._meta.trace_id, self._meta.root_id = trace_id, root_id
            with contextlib.suppress(OSError):
                write_meta(self.store, self._meta)

    def _describe(self) -> None:
        """Into meta.json what lists of traces show, so that they need not read spans."""
        root = self._root
        if root is None:
            return
        attributes = root.attributes
        self._meta.labels = {key: str(attributes[key])[:MAX_LABEL] for key in LABELS if key in attributes}
        teller = next((s for s in (root, root.tracer.lifetime) if s is not None and s.status is Status.ERROR), None)
        if teller is not None:
            self._meta.failure = teller.message.partition("\n")[0][:MAX_LABEL]

    def _open_spans(self) -> list[Span]:
        return list(self._open)

    def _await_work(self) -> None:
        """Until there is something to write; meanwhile show that we live, so that the end of a kill is known."""
        until = self._until_journal()
        while not self._wake.wait(HEARTBEAT / 1e9 if until is None else min(until, HEARTBEAT / 1e9)):
            with contextlib.suppress(OSError):
                os.utime(self.store.lock_path)
            if until is not None and (until := self._until_journal()) == 0:
                return

    def _until_journal(self) -> float | None:
        """Seconds until the next open span has lasted long enough to be journaled."""
        starts = [span.start for span in self._open_spans() if span.context.span_id not in self._journaled]
        if not starts:
            return None
        return max(min(starts) + LASTING - time.monotonic_ns(), 0) / 1e9

    def _write_all(self) -> None:
        self._note_root()
        lasting = time.monotonic_ns() - LASTING
        self._journal(span for span in self._open_spans() if span is self._root or span.start <= lasting)
        appended = False
        while self._queue:
            spans: list[Span] = []
            while self._queue and len(spans) < BATCH:
                item = self._queue.popleft()
                if isinstance(item, Span):
                    spans.append(item)
                    continue
                with self._lost_lock:
                    self._queued_bytes -= len(item)
                appended |= self._append_guest(item)
            appended |= self._append(spans)
        if appended and self.on_append:
            with contextlib.suppress(Exception):
                self.on_append()

    def _journal(self, spans: Iterable[Span]) -> None:
        fresh = [span for span in spans if span.context.span_id not in self._journaled]
        if not fresh:
            return
        self._place(fresh)
        # Once, also where it fails: what is missing here shows when the span ends.
        self._journaled.update(span.context.span_id for span in fresh)
        encoded = otlp.encode(fresh, self._meta.sandbox_id)
        if encoded.spans:
            self._append_line(self.store.open_spans, otlp.to_line(encoded.data))

    def _place(self, spans: Iterable[Span]) -> None:
        """Put under the root what began in something that this store does not have: tracing was off then."""
        root = self._root
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
        encoded = otlp.encode(spans, self._meta.sandbox_id)
        if len(encoded.data) > MAX_LINE and len(spans) > 1:
            half = len(spans) // 2
            return bool(self._append(spans[:half]) | self._append(spans[half:]))
        if encoded.failed:
            self._lose("not encodable", encoded.failed)
        return self._append_spans(otlp.to_line(encoded.data), encoded.spans)

    def _journal_above(self, spans: Iterable[Span]) -> None:
        """Journal the open parents of what is about to be written: nothing in a store lacks its parent."""
        above: dict[Span, None] = {}
        for span in spans:
            parent = span.parent
            while isinstance(parent, Span) and parent not in above and parent in self._open:
                above[parent] = None
                parent = parent.parent
        self._journal(above)

    def _append_guest(self, data: bytes) -> bool:
        known = {span.context.span_id.to_bytes(8, "big"): span for span in self._open_spans()}
        for span in known.values():
            self._quarantine.claim(span.context.span_id)
        request = self._quarantine.rebuild(data)
        if request is None:
            return False
        parents = {span.parent_span_id for span in request.resource_spans[0].scope_spans[0].spans}
        called = [known[parent] for parent in parents if parent in known]
        self._journal_above(called)
        self._journal(span for span in called if span in self._open)
        self._note_root()
        return self._append_spans(otlp.to_line(request), len(request.resource_spans[0].scope_spans[0].spans))

    def _append_spans(self, line: str, spans: int) -> bool:
        if not spans:
            return False
        if not self._append_line(self.store.spans, line):
            self._lose("store full or not writable", spans)
            return False
        self._meta.spans += spans
        return True

    def _append_line(self, path: Path, line: str) -> bool:
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

    def _count_losses(self) -> None:
        tally = self._quarantine.tally
        with self._lost_lock:
            lost = dict(self._lost)
        for reason, count in tally.lost().items():
            lost[reason] = lost.get(reason, 0) + count
        self._meta.lost = lost

    def _loss_span(self) -> Span:
        """What is missing, as a span, so that it is seen wherever the trace is seen."""
        parent = None
        if self._quarantine.trace_id and self._quarantine.root_id:
            parent = SpanContext(
                int.from_bytes(self._quarantine.trace_id, "big"), int.from_bytes(self._quarantine.root_id, "big")
            )
        common = {
            "source": "runtime",
            "sandbox_id": self._meta.sandbox_id,
            "package": "telemetry",
            "subsystem": "store",
        }
        tracer = self._root.tracer if self._root else Tracer("kata", lambda _: None)
        span = Tracer(tracer.service, lambda _: None, clock=tracer.clock, common=common).start(
            "spansLost", parent=parent, attributes=self._meta.lost
        )
        if self._root and self._root.end:
            span.start = self._root.end  # inside its parent
        details = ", ".join(f"{count} {reason}" for reason, count in self._meta.lost.items())
        span.event("lost", at=span.start, what=details)
        span.fail(f"spans are missing: {details}")
        span.end = span.start
        return span
