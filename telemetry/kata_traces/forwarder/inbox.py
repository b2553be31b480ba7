"""What comes from one sandbox: rebuilt, stored, counted.

A batch is confirmed to its sender when it is here, so all else is bounded by the store: nothing waits in memory.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from kata_common.files import Lock
from kata_telemetry import otlp
from kata_telemetry.clock import HostClock
from kata_telemetry.logs import TRACE
from kata_traces.store.announce import Announcement
from kata_traces.store.errors import StoreError
from kata_traces.store.quarantine import Quarantine, host_time
from kata_traces.store.spool import AgentMeta, Spool, frames
from kata_traces.store.store import Store, move_aside, write_meta

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from kata_traces.sdk.pipeline import Pipeline

__all__ = ["Dump", "Inbox", "Origin"]

_log = logging.getLogger("kata.forwarder")

# Bytes per second that one sandbox may send for long, and at once: some 20,000 spans. Beyond it is read later.
RATE: Final = 4 * 1024 * 1024
BURST: Final = 4 * 1024 * 1024
# What a connection and a frame cost besides their bytes: nothing in them is no less work.
CONNECTION: Final = 64 * 1024
FRAME: Final = 1024
# Seconds between two notes of what was counted.
NOTE_AFTER: Final = 0.5
# Lines of log that one guest can cause.
MAX_REMARKS: Final = 10
_SPAN_ID: Final = re.compile(rb'"spanId":"([0-9a-f]{16})"')


@dataclass(frozen=True, slots=True)
class Origin:
    """The sandbox at the other end of a connection, as the host knows it. `directory` is there as long as it lives."""

    sandbox_id: str
    directory: Path
    announcement: Announcement | None = None


class _Rate:
    """A bucket of bytes that fills with time."""

    def __init__(self) -> None:
        self._full_at = time.monotonic()

    def wait(self, count: int) -> float:
        """Take `count` bytes; seconds to wait before the next ones."""
        now = time.monotonic()
        self._full_at = max(self._full_at, now) + count / RATE
        return max(self._full_at - now - BURST / RATE, 0.0)


class _Sandbox:
    """What both kinds of inbox do: rebuild, count, and say so within bounds."""

    def __init__(self, origin: Origin, service: str) -> None:
        said = origin.announcement
        self.origin = origin
        self.rate = _Rate()
        self.connections = 0
        self._remarks = 0
        if said:
            offset = said.clock_offset
            self.quarantine = Quarantine(
                said.sandbox_id,
                said.since,
                trace_id=bytes.fromhex(said.trace_id) or None,
                root_id=bytes.fromhex(said.root_id) or None,
                service=service,
                now=lambda: time.monotonic_ns() + offset,
            )
        else:
            since = int(origin.directory.stat().st_ctime * 1e9) if origin.directory.exists() else time.time_ns()
            self.quarantine = Quarantine(origin.sandbox_id, since, service=service, now=host_time(HostClock()))

    def remark(self, what: str) -> None:
        """Log something that the guest caused; only so often."""
        self._remarks += 1
        if self._remarks <= MAX_REMARKS:
            more = "; further ones are not logged" if self._remarks == MAX_REMARKS else ""
            _log.warning("%s%s", what, more, extra={"sandbox": self.origin.sandbox_id})

    def rebuild(self, payload: bytes) -> "ExportTraceServiceRequest | None":
        """What of a batch may go on."""
        tally = self.quarantine.tally
        batches, refused = tally.batches, tally.rejected
        request = self.quarantine.rebuild(payload)
        if tally.batches > batches:
            self.remark("a batch that is no OTLP, or after too many that were refused" + _kata_hint(payload))
        elif tally.rejected > refused:
            self.remark(f"{tally.rejected - refused} spans refused: {', '.join(tally.refused)}")
        if request is not None:
            request = _pipeline().encode(_pipeline().tell_request(request))
        if _log.isEnabledFor(TRACE):
            count = otlp.count(request) if request else 0
            fields = {"sandbox": self.origin.sandbox_id, "bytes": len(payload), "spans": count}
            _log.log(TRACE, "batch received", extra=fields)
        return request


@functools.cache
def _pipeline() -> "Pipeline":
    """OpenTelemetry's SDK: one for all sandboxes, which have their own resources in it."""
    from kata_traces.sdk.pipeline import Pipeline

    return Pipeline()


def _kata_hint(payload: bytes) -> str:
    return " (it is JSON, as Kata's own agent sends it; only this project's agent is understood)" * (
        payload[:1] in (b"{", b"[")
    )


class Dump(_Sandbox):
    """`--dump-only`: batches go to standard output as lines of OTLP/JSON, and nowhere else."""

    def __init__(self, origin: Origin, service: str, output: TextIO) -> None:
        super().__init__(origin, service)
        self._output = output

    def take(self, payload: bytes) -> None:
        """One batch."""
        if request := self.rebuild(payload):
            print(otlp.to_line(request), file=self._output, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class Inbox(_Sandbox):
    """One sandbox's spans on their way into its store.

    Where a runtime announced the sandbox, that is the store that the runtime made; else one of ours under `trace_dir`.
    `stored` is called with the store after spans were added.
    """

    def __init__(self, origin: Origin, service: str, trace_dir: Path, stored: Callable[[Store], None]) -> None:
        """Raises StoreError."""
        super().__init__(origin, service)
        self._stored = stored
        self._lock: Lock | None = None
        self._host_read: dict[Path, int] = {}
        self._note: asyncio.TimerHandle | None = None
        self._noted = True
        if origin.announcement:
            self.store = Store(Path(origin.announcement.store))
            if not self.store.directory.is_dir():
                raise StoreError(f"the trace of {origin.sandbox_id} is not at {self.store.directory} any more")
        else:
            self.store = Store(trace_dir / origin.sandbox_id)
            self._own()
        self._meta = AgentMeta.read(self.store.agent_meta_path)
        self._lost_before = dict(self._meta.lost)
        if not origin.announcement and self._meta.trace_id:
            self.quarantine.trace_id = bytes.fromhex(self._meta.trace_id)
            self.quarantine.root_id = bytes.fromhex(self._meta.root_id) or None
        self._spool = Spool(self.store.agent_spans)
        for payload in frames(self.store.agent_spans):
            for resource in otlp.parse(payload).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.quarantine.known(span.span_id)

    def _own(self) -> None:
        """A store for a sandbox of whom no runtime keeps one."""
        try:
            self.store.directory.parent.mkdir(parents=True, exist_ok=True)
            if self.store.directory.exists() and not self.store.live and self.store.own_meta().end:
                move_aside(self.store)
            self.store.directory.mkdir(mode=0o700, exist_ok=True)
            self._lock = Lock(self.store.lock_path)
            if not self._lock.acquire():
                raise StoreError(f"the trace in {self.store.directory} is being written by another process")
            meta = self.store.own_meta()
            meta.start = meta.start or self.quarantine.since
            meta.pid = os.getpid()
            write_meta(self.store, meta)
        except OSError as error:
            raise StoreError(f"cannot keep a trace in {self.store.directory}: {error.strerror}") from error

    def take(self, payload: bytes) -> None:
        """One batch; afterwards it is stored, or refused for good."""
        self._claim_host_ids()
        tally, before = self.quarantine.tally, self.quarantine.root_id
        request = self.rebuild(payload)
        if request is not None:
            count = otlp.count(request)
            if self._spool.append(request.SerializeToString()):
                self._meta.spans += count
                self._stored(self.store)
            else:
                tally.refused["the store is full, or can't be written"] += count
                self.remark("spans are lost: the sandbox's store is full, or can't be written")
        self._noted = False
        if self.quarantine.root_id != before or self._note is None:
            self._write_note()

    def _claim_host_ids(self) -> None:
        """Ids of spans that the host has written are not the guest's."""
        for path in (self.store.spans, self.store.open_spans):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(self._host_read.get(path, 0))
                news = file.read()
                end = news.rfind(b"\n") + 1
                self._host_read[path] = file.tell() - len(news) + end
                for found in _SPAN_ID.finditer(news, 0, end):
                    self.quarantine.claim(int(found[1], 16))

    def _write_note(self) -> None:
        self._meta.lost = dict(self._lost_before)
        for reason, number in self.quarantine.tally.lost().items():
            self._meta.lost[reason] = self._meta.lost.get(reason, 0) + number
        if not (self.origin.announcement and self.origin.announcement.trace_id):
            self._meta.trace_id = (self.quarantine.trace_id or b"").hex()
            self._meta.root_id = (self.quarantine.root_id or b"").hex()
        with contextlib.suppress(OSError):  # the store may be gone, or its disk full
            self._meta.write(self.store.agent_meta_path)
        self._noted = True
        if self._note:
            self._note.cancel()
        self._note = asyncio.get_running_loop().call_later(NOTE_AFTER, self._look_at_note)

    def _look_at_note(self) -> None:
        self._note = None
        if not self._noted:
            self._write_note()

    def close(self) -> None:
        """The sandbox has ended, or we do."""
        self._write_note()
        if self._note:
            self._note.cancel()
        self._spool.close()
        if self._lock:
            meta = self.store.own_meta()
            if not self.origin.directory.exists():
                meta.end, meta.outcome = time.time_ns(), "closed"
            with contextlib.suppress(OSError):
                write_meta(self.store, meta)
            self._lock.release()
