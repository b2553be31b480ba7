"""What is known of each trace without opening it again: for lists, searches and statistics over a store.

A trace is read once and again only when its files have changed. Reading a thousand takes seconds, so that a thread does
it; until then they are found by what their meta.json says.
"""

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from kata_telemetry.conventions import CONTAINER_NAME, IMAGE_NAME, POD_NAME, POD_NAMESPACE
from kata_traces.read.explain import start_of
from kata_traces.read.failure import failure_of
from kata_traces.read.stages import Stage
from kata_traces.read.trace import Trace, load, load_store
from kata_traces.store.abandoned import KILLED, last_sign
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Meta, Store

__all__ = ["Index", "Summary", "failed", "summarize"]

# Characters of names and attributes of one trace that are searched.
MAX_TEXT: Final = 200_000
# Traces that came by OTLP or were dropped on the page, in memory, and their lines' size.
MAX_GUESTS: Final = 500
MAX_GUEST_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Summary:
    """One trace in a list. Times in ns; `stages` of its start as far as it was read, `text` is what is searched."""

    id: str
    trace_id: str
    name: str
    pod: str
    image: str
    command: str
    state: str
    failure: str
    start: int
    duration: int
    spans: int
    live: bool
    # From the root's start to the first process, 0 where there was none; `slowest` is by name in lower case.
    started: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    slowest: dict[str, int] = field(default_factory=dict)
    text: str = ""

    @property
    def row(self) -> str:
        """For the page, without what is only searched: JSON, made once, since lists are asked for with each letter."""
        known = _rows.get(self)
        if known is None:
            known = _rows[self] = json.dumps(self.to_row(), separators=(",", ":"))
        return known

    def to_row(self) -> dict[str, Any]:
        """The content of `row`."""
        names = ("id", "trace_id", "name", "pod", "image", "command", "state", "failure", "duration", "spans", "live")
        return {name: getattr(self, name) for name in names} | {
            "start": self.start // 1_000_000,  # ms: JavaScript's numbers hold no ns of today
            "started": self.started,
            "stages": [self.stages.get(stage, 0) for stage in Stage],
        }


_rows: "WeakKeyDictionary[Summary, str]" = WeakKeyDictionary()


def failed(summary: Summary) -> bool:
    """Whether it did not end well."""
    return bool(summary.failure) or summary.state in ("error", "failed", KILLED)


def _known(identity: str, meta: Meta, *, live: bool, end: int) -> dict[str, Any]:
    labels = meta.labels
    return {
        "id": identity,
        "trace_id": meta.trace_id,
        "name": meta.name if meta.name != identity else labels.get(CONTAINER_NAME, ""),
        "pod": "/".join(filter(None, (labels.get(POD_NAMESPACE, ""), labels.get(POD_NAME, "")))),
        "image": labels.get(IMAGE_NAME, ""),
        "command": meta.command,
        "state": "running" if live else meta.outcome or KILLED,
        "failure": meta.failure,
        "start": meta.start,
        "duration": max(end - meta.start, 0),
        "spans": meta.spans,
        "live": live,
    }


def summarize(identity: str, trace: Trace) -> Summary:
    """All of it."""
    meta, root = trace.meta, trace.root
    found = _known(identity, meta, live=trace.live, end=meta.end)
    why = failure_of(trace)
    begun = start_of(trace)
    slowest: dict[str, int] = {}
    words: dict[str, None] = {}
    for span in trace.spans:
        name = span.name.lower()
        slowest[name] = max(slowest.get(name, 0), span.duration)
        for word in (span.name, span.message, *(f"{key}={value}" for key, value in span.attributes.items())):
            words[word] = None
        for event in span.events:
            words[event.name] = None
    silent = "ended" if not root.open else KILLED
    found |= {
        "trace_id": trace.trace_id,
        "state": "running" if trace.live else meta.outcome or ("error" if why and why.fatal else silent),
        "failure": why.said[0] if why and why.fatal else "",
        "start": root.start,
        "duration": trace.duration,
        "spans": len(trace.spans),
    }
    head = " ".join(str(found[key]) for key in ("id", "trace_id", "name", "pod", "image", "command", "failure"))
    text = f"{head}\n{chr(10).join(words)}"[:MAX_TEXT].lower()
    return Summary(
        **found, started=begun.total if begun.reached else 0, stages=begun.stages, slowest=slowest, text=text
    )


class Index:
    """All traces of a store, and those that were given to the page: by OTLP, or as files."""

    def __init__(self, trace_dir: Path) -> None:
        self.trace_dir = trace_dir
        self._lock = threading.Lock()
        self._read: dict[str, tuple[tuple[int, ...], Summary]] = {}
        self._guests: dict[str, list[str]] = {}
        self._guest_summaries: dict[str, Summary] = {}
        self._guest_bytes = 0
        self._wanted = threading.Event()
        # Set while the thread has nothing to read.
        self.settled = threading.Event()
        self._thread = threading.Thread(target=self._read_on, name="trace-index", daemon=True)
        self._closing = threading.Event()

    def start(self) -> None:
        """Begin to read what is there."""
        self._thread.start()
        self._wanted.set()

    def close(self) -> None:
        """Once, after `start`."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()

    def all(self) -> tuple[list[Summary], int]:
        """Summaries, the newest first, and how many of them are still to be read whole."""
        found: list[Summary] = []
        unread = 0
        for store in _stores(self.trace_dir):
            state = _state(store)
            known = self._read.get(store.directory.name)
            if known is not None and known[0] == state and not known[1].live:
                found.append(known[1])
                continue
            unread += 1
            found.append(known[1] if known is not None and known[1].live and store.live else _unread(store))
        with self._lock:
            found += self._guest_summaries.values()
        if unread:
            self._wanted.set()
        return sorted(found, key=lambda summary: -summary.start), unread

    def load(self, identity: str) -> Trace:
        """One trace, as it is now. Raises StoreError."""
        with self._lock:
            lines = self._guests.get(identity)
        if lines is not None:
            trace = load(lines, meta=Meta(""))
        else:
            # Never a path: only what is listed.
            if not identity or "/" in identity or identity.startswith(".") or len(identity) > 255:
                raise StoreError(f"no trace of {identity!r}")
            store = Store(self.trace_dir / identity)
            if not store.meta_path.exists() and not store.spans.exists():
                raise StoreError(f"no trace of {identity!r}")
            trace = load_store(store)
        if trace is None:
            raise StoreError(f"the trace of {identity!r} has no span yet")
        return trace

    def add(self, identity: str, lines: Iterable[str]) -> None:
        """Lines of OTLP/JSON from outside, to those of the same name. Raises StoreError where there is no room."""
        fresh = list(lines)
        size = sum(map(len, fresh))
        with self._lock:
            if self._guest_bytes + size > MAX_GUEST_BYTES:
                raise StoreError("no room for more traces from outside: end and start `trace serve`")
            kept = self._guests.setdefault(identity, [])
            kept += fresh
            self._guest_bytes += size
            while len(self._guests) > MAX_GUESTS:
                oldest = next(iter(self._guests))
                self._guest_bytes -= sum(map(len, self._guests.pop(oldest)))
                self._guest_summaries.pop(oldest, None)
            lines_now = list(kept)
        trace = load(lines_now, meta=Meta(""))
        if trace is None:
            raise StoreError("it has no span")
        summary = summarize(identity, trace)
        with self._lock:
            if identity in self._guests:
                self._guest_summaries[identity] = summary

    def _read_on(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self.settled.clear()
            # The newest first: whoever opens the page looks for what has just happened.
            for store in sorted(_stores(self.trace_dir), key=lambda store: _state(store)[0], reverse=True):
                if self._closing.is_set():
                    return
                name, state = store.directory.name, _state(store)
                known = self._read.get(name)
                if known is not None and known[0] == state and known[1].live == store.live:
                    continue
                try:
                    trace = load_store(store)
                except StoreError:
                    continue
                self._read[name] = state, summarize(name, trace) if trace is not None else _unread(store)
            if self._closing.is_set():
                return
            gone = set(self._read) - {store.directory.name for store in _stores(self.trace_dir)}
            for name in gone:
                self._read.pop(name, None)
            self.settled.set()


def _stores(trace_dir: Path) -> Iterator[Store]:
    """As `stores`, but without reading any, in no order."""
    try:
        with os.scandir(trace_dir) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        yield Store(trace_dir / name)


def _state(store: Store) -> tuple[int, ...]:
    """What changes when a trace does. Asked for each trace of a list: pathlib would cost more than the kernel."""
    found: list[int] = []
    for name in ("meta.json", "spans.jsonl", "open.jsonl", "agent.otlp"):
        try:
            status = os.stat(f"{store.directory}/{name}")  # noqa: PTH116
        except OSError:
            found.append(0)
            continue
        found += [status.st_mtime_ns, status.st_size]
    return tuple(found)


def _unread(store: Store) -> Summary:
    meta, live = store.meta(), store.live
    end = time.time_ns() if live else meta.end or last_sign(store)
    known = _known(store.directory.name, meta, live=live, end=end)
    text = " ".join(str(known[key]) for key in ("id", "trace_id", "name", "pod", "image", "command", "failure"))
    return Summary(**known, text=text.lower())
