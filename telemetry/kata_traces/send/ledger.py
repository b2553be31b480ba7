"""How far each target has come with one part of a store: a file beside it, written after every answer."""

import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kata_common.documents import parse_json
from kata_common.files import write_atomically
from kata_traces.send.parts import Part, RuntimePart
from kata_traces.store.errors import StoreError
from kata_traces.store.store import Store

__all__ = ["Ledger", "Progress", "load_progress"]


@dataclass(slots=True)
class Progress:
    """How far one target has come with one store."""

    # Bytes of spans.jsonl that are dealt with, but for those below.
    offset: int = 0
    # Spans that the collector took, and those of them that it then did not want (partial success).
    spans: int = 0
    rejected: int = 0
    # Lines before `offset` that it refused, by offset, or single spans of one, by "offset:number"; with its reason.
    # `push` tries them again.
    refused: dict[str, str] = field(default_factory=dict)
    # Offsets of lines before `offset` that failed for no known reason, and the numbers of their spans that went.
    deferred: dict[str, list[int]] = field(default_factory=dict)
    # How often the line at `offset` failed so.
    failures: int = 0
    # Lines that are no OTLP, from a writer that was killed.
    broken: int = 0
    # The last thing that went wrong.
    error: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From an entry of the file; what has a wrong type is left at its default."""
        defaults = cls()
        names = [item.name for item in dataclasses.fields(cls)]
        return cls(**{n: content[n] for n in names if type(content.get(n)) is type(getattr(defaults, n))})


class Ledger:
    """One file, for all who send in one process; several threads, each with a target of its own."""

    def __init__(self, part: Part) -> None:
        self._path = part.progress_path
        self._lock = threading.Lock()
        self._entries = _read(part)

    def of(self, target: str) -> Progress:
        """How far this target has come. For the thread that sends to it."""
        with self._lock:
            return Progress.from_json(self._entries.get(target, {}))

    def save(self, target: str, progress: Progress) -> None:
        """Raises StoreError."""
        entry = dataclasses.asdict(progress)
        with self._lock:
            self._entries[target] = entry
            self._write()

    def forget(self, target: str) -> None:
        """Know nothing of this target. Raises StoreError."""
        with self._lock:
            self._entries.pop(target, None)
            self._write()

    def _write(self) -> None:
        try:
            write_atomically(self._path, json.dumps({"targets": self._entries}, indent=1).encode())
        except OSError as error:
            raise StoreError(f"cannot write {self._path}: {error.strerror}") from error


def load_progress(store: Store, part: Part | None = None) -> dict[str, Progress]:
    """Of each target that a part of this store (the runtime's) was sent to, by `Target.target`."""
    return {name: Progress.from_json(entry) for name, entry in _read(part or RuntimePart(store)).items()}


def _read(part: Part) -> dict[str, dict[str, Any]]:
    try:
        content = parse_json(part.progress_path.read_bytes())
    except (OSError, ValueError):
        return {}
    targets = content.get("targets") if isinstance(content, dict) else None
    if not isinstance(targets, dict):
        return {}
    return {name: entry for name, entry in targets.items() if isinstance(entry, dict)}
