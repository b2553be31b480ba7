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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kata_common.files import Lock
from kata_telemetry.recorder import Recorder
from kata_telemetry.span import Level, Span, Tracer
from kata_telemetry.values import Value
from kata_traces.store.abandoned import HEARTBEAT
from kata_traces.store.errors import StoreError
from kata_traces.store.keep import Retention, prune
from kata_traces.store.queue import Queue
from kata_traces.store.scribe import BATCH, Scribe
from kata_traces.store.store import Meta, Store, move_aside, write_meta

__all__ = ["StoreWriter"]

# How long the writer lets spans gather, in seconds; readers of a live trace are this much behind.
LINGER: Final = 0.2
# When to begin where nobody calls begin(), in seconds.
BEGIN_AFTER: Final = 1.0


class Signals:
    """What the writer's thread and the others tell each other."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.hurry = threading.Event()
        self.begin = threading.Event()
        self.idle = threading.Event()
        self.closing = threading.Event()

    def all_haste(self) -> None:
        """Write now."""
        self.hurry.set()
        self.begin.set()
        self.wake.set()


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
        self._queue = Queue()
        self._scribe = Scribe(store, meta, self._queue)
        self._signals = Signals()
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
                self._queue.open.pop(span, None)

    def leave(self, tracer: Tracer, recorder: Recorder | None, level: Level) -> None:
        """The spans of `tracer` go elsewhere from now on, but for those that are open: they belong to this store."""
        mine = set(self._queue.open)

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
        queue, wake = self._queue, self._signals.wake
        if queue.root is None:
            queue.root = span
        span.kept = True
        queue.open[span] = None
        if not wake.is_set():
            wake.set()

    def sink(self, span: Span) -> None:
        """Take an ended span."""
        queue, signals = self._queue, self._signals
        if not queue.add(span):
            return
        if not signals.wake.is_set():
            signals.wake.set()
        if len(queue) >= BATCH and not signals.hurry.is_set():
            signals.hurry.set()

    def write_otlp(self, data: bytes, dropped: int = 0) -> None:
        """Take a serialized ExportTraceServiceRequest from the guest; `dropped` is how many spans it says it lost."""
        if dropped:
            self._queue.lose("dropped by the agent", min(dropped, 2**32))
        if self._queue.add_batch(data) and not self._signals.wake.is_set():
            self._signals.wake.set()

    @property
    def started(self) -> int:
        """When the sandbox began: host time, ns."""
        root = self._queue.root
        return min(self._meta.start, root.tracer.clock.to_host(root.start)) if root else self._meta.start

    def begin(self) -> None:
        """There is time now: write. Without this call writing begins after a second."""
        self._signals.begin.set()

    def flush(self, timeout: float) -> bool:
        """Write what is there; False if that took longer than `timeout` seconds."""
        self._signals.idle.clear()
        self._signals.all_haste()
        return self._signals.idle.wait(timeout) if self._thread.is_alive() else not self._queue

    def close(self, timeout: float, outcome: str = "") -> bool:
        """Write what is left and `outcome` (how the sandbox ended); False if that took longer than `timeout` seconds.

        Spans that are still open stay in the trace as such. Calls after the first one only wait.
        """
        if not self._signals.closing.is_set():
            self._meta.outcome = outcome or "closed"
            self._signals.closing.set()
        self._signals.all_haste()
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

    # From here on: the writer's thread.

    def _run(self) -> None:
        signals, scribe = self._signals, self._scribe
        try:
            signals.wake.wait()
            scribe.note_root()
            signals.begin.wait(BEGIN_AFTER)
            with contextlib.suppress(OSError, StoreError):
                prune(self.store.directory.parent, self._retention, self.store.directory)
            while not signals.closing.is_set():
                signals.hurry.wait(LINGER)
                signals.hurry.clear()
                signals.wake.clear()
                if signals.closing.is_set():  # its wake-up may be the one that was just cleared
                    break
                if scribe.write_all() and self.on_append:
                    with contextlib.suppress(Exception):
                        self.on_append()
                if not signals.wake.is_set():
                    signals.idle.set()
                self._await_work()
            if scribe.finish() and self.on_append:
                with contextlib.suppress(Exception):
                    self.on_append()
        finally:
            scribe.lines.close()
            self._lock.release()
            signals.idle.set()

    def _await_work(self) -> None:
        """Until there is something to write; meanwhile show that we live, so that the end of a kill is known."""
        until = self._scribe.until_journal()
        while not self._signals.wake.wait(HEARTBEAT / 1e9 if until is None else min(until, HEARTBEAT / 1e9)):
            with contextlib.suppress(OSError):
                os.utime(self.store.lock_path)
            if until is not None and (until := self._scribe.until_journal()) == 0:
                return
