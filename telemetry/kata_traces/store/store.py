"""Where traces are kept: one directory per sandbox under the trace directory.

    <trace_dir>/<sandbox_id>/
        spans.jsonl   ended spans; each line is one ExportTraceServiceRequest in OTLP/JSON (OpenTelemetry's file format)
        open.jsonl    the starts of spans that last, in the same form without an end; superseded by spans.jsonl
        meta.json     Meta, below
        lock          locked by the writer while the sandbox lives
        export.json   how far an exporter came (kata_traces.send.delivery)
        agent.otlp    spans that came through the trace forwarder, as it keeps them (kata_traces.store.spool); with
                      agent.json and forward.json, which are its meta.json and export.json

A sandbox id that is used again moves its older trace aside, to `<sandbox_id>~1`, `~2`...
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kata_common.documents import parse_json
from kata_common.files import Lock, write_atomically
from kata_common.places import TRACE_DIR
from kata_traces.store.errors import StoreError
from kata_traces.store.spool import AgentMeta, frames

__all__ = [
    "DEFAULT_TRACE_DIR",
    "Meta",
    "Store",
    "discard",
    "move_aside",
    "save_meta",
    "stores",
    "write_meta",
]

DEFAULT_TRACE_DIR = Path(TRACE_DIR)


@dataclass(slots=True)
class Meta:
    """What is known about a trace besides its spans. Times in ns since the epoch; ids in hex, "" while unknown."""

    sandbox_id: str
    name: str = ""
    # Only the command's name: arguments may be secret.
    command: str = ""
    start: int = 0
    pid: int = 0
    trace_id: str = ""
    root_id: str = ""
    root_parent_id: str = ""
    root_name: str = ""
    # "" while the sandbox lives, or when whoever wrote it was killed.
    outcome: str = ""
    end: int = 0
    spans: int = 0
    # Why it failed, in one line, or "".
    failure: str = ""
    # What its root says about pod, container and image (kata_telemetry.conventions.LABELS).
    labels: dict[str, str] = field(default_factory=dict)
    # Spans that are not in the trace, by reason.
    lost: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From the content of a meta.json; unknown keys and values of a wrong type are ignored."""
        known: dict[str, Any] = {}
        defaults = cls("")
        for item in dataclasses.fields(cls):
            value = content.get(item.name)
            if type(value) is type(getattr(defaults, item.name)):
                known[item.name] = _text(value) if isinstance(value, str) else value
        known["labels"] = {_text(k): _text(v) for k, v in known.get("labels", {}).items() if isinstance(v, str)}
        known["lost"] = {_text(k): v for k, v in known.get("lost", {}).items() if type(v) is int}
        known.setdefault("sandbox_id", "")
        return cls(**known)


def _text(text: str) -> str:
    """What JSON may hold and no view can write, a lone surrogate, becomes a question mark."""
    return text.encode(errors="replace").decode()


@dataclass(frozen=True, slots=True)
class Store:
    """One sandbox's trace directory, for reading."""

    directory: Path

    @property
    def spans(self) -> Path:
        return self.directory / "spans.jsonl"

    @property
    def open_spans(self) -> Path:
        return self.directory / "open.jsonl"

    @property
    def meta_path(self) -> Path:
        return self.directory / "meta.json"

    @property
    def lock_path(self) -> Path:
        return self.directory / "lock"

    @property
    def export_lock_path(self) -> Path:
        return self.directory / "export.lock"

    @property
    def agent_spans(self) -> Path:
        return self.directory / "agent.otlp"

    @property
    def agent_meta_path(self) -> Path:
        return self.directory / "agent.json"

    @property
    def live(self) -> bool:
        """Whether a writer has it open."""
        return Lock.held(self.lock_path)

    def meta(self) -> Meta:
        """What is known of the trace, the forwarder's part included."""
        meta = self.own_meta()
        if self.agent_meta_path.exists():
            agent = AgentMeta.read(self.agent_meta_path)
            meta.spans += agent.spans
            meta.trace_id, meta.root_id = meta.trace_id or agent.trace_id, meta.root_id or agent.root_id
            for reason, count in agent.lost.items():
                meta.lost[reason] = meta.lost.get(reason, 0) + count
        return meta

    def own_meta(self) -> Meta:
        """What its writer wrote, as far as it can be read."""
        try:
            content = parse_json(self.meta_path.read_bytes())
        except (OSError, ValueError):
            content = {}
        meta = Meta.from_json(content if isinstance(content, dict) else {})
        meta.sandbox_id = meta.sandbox_id or self.directory.name
        return meta

    def size(self) -> int:
        """Bytes of all its files."""
        total = 0
        with contextlib.suppress(OSError), os.scandir(self.directory) as entries:
            total = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
        return total

    def lines(self) -> Iterator[bytes]:
        """All lines of spans.jsonl, the forwarder's batches as such lines, then open.jsonl; the last line of a file may
        be cut off.
        """
        yield from _lines(self.spans)
        if self.agent_spans.exists():
            from kata_telemetry import otlp

            for payload in frames(self.agent_spans):
                with contextlib.suppress(otlp.MalformedOtlpError):
                    yield otlp.to_line(payload).encode()
        yield from _lines(self.open_spans)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def write_meta(store: Store, meta: Meta) -> None:
    """Replace the store's meta.json."""
    write_atomically(store.meta_path, json.dumps(dataclasses.asdict(meta), indent=1).encode())


def save_meta(store: Store, meta: Meta) -> None:
    """As `write_meta`; where the disk is full, into the place that the old one has. Raises OSError."""
    try:
        write_meta(store, meta)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        content = json.dumps(dataclasses.asdict(meta)).encode()
        with store.meta_path.open("r+b", buffering=0) as file:
            file.write(content)
            file.truncate()


def stores(trace_dir: Path) -> list[Store]:
    """All traces under `trace_dir`, the newest first. A directory that isn't there holds none."""
    found: list[tuple[int, str, Store]] = []
    try:
        with os.scandir(trace_dir) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                    continue
                store = Store(trace_dir / entry.name)
                start = store.meta().start or int(entry.stat(follow_symlinks=False).st_mtime * 1e9)
                found.append((start, entry.name, store))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read the traces in {trace_dir}: {error.strerror}") from error
    return [store for _, _, store in sorted(found, key=lambda item: item[:2], reverse=True)]


def move_aside(store: Store) -> None:
    """Free the name of a finished trace: it becomes `<name>~1` or so. Raises OSError, StoreError."""
    for number in range(1, 10_000):
        aside = store.directory.with_name(f"{store.directory.name}~{number}")
        if not aside.exists():
            store.directory.rename(aside)
            return
    raise StoreError(
        f"too many traces of sandboxes named like {store.directory.name}: remove some of its ~N directories"
    )


def discard(store: Store) -> bool:
    """Remove a trace that nobody writes; whether it went."""
    # Its lock is held meanwhile, so that nobody begins to write into what is about to go.
    lock = Lock(store.lock_path)
    try:
        if not lock.acquire():
            return False
        grave = store.directory.with_name(f".removing-{store.directory.name}-{time.monotonic_ns()}")
        store.directory.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    except OSError:
        return False
    finally:
        lock.release()
    return True
