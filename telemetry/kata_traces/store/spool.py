"""The agent's spans as the trace forwarder keeps them: `agent.otlp` beside `spans.jsonl` in the sandbox's store.

The file has the frames of kata_telemetry.wire, each a batch that the quarantine has rebuilt. Not lines of OTLP/JSON:
making and reading those takes three quarters of a forwarder's CPU, and this file is a copy on its way.
`agent.json` beside it says what the file can't: spans that were refused, and which trace an agent without a traced
runtime began.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from kata_common.documents import parse_json
from kata_common.files import write_atomically
from kata_telemetry.wire import MAX_FRAME, NUMBER, frame
from kata_traces.store.errors import StoreError

__all__ = ["MAX_STORED", "AgentMeta", "Spool", "frames", "read_frame"]

# A guest's batch may grow by what the host adds: resource, `source` and `sandbox_id` of each span.
MAX_STORED: Final = 32 * MAX_FRAME
# What one sandbox's agent may fill.
MAX_SPOOL: Final = 32 * 1024 * 1024


@dataclass(slots=True)
class AgentMeta:
    """What is known of an agent's spans. Ids in hex, "" where the runtime's meta has them."""

    spans: int = 0
    trace_id: str = ""
    root_id: str = ""
    lost: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """As far as it can be read."""
        try:
            content = parse_json(path.read_bytes())
        except (OSError, ValueError):
            content = {}
        return cls.from_json(content if isinstance(content, dict) else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Unknown keys and values of a wrong type are ignored."""
        defaults = cls()
        names = [item.name for item in dataclasses.fields(cls)]
        return cls(**{n: content[n] for n in names if type(content.get(n)) is type(getattr(defaults, n))})

    def write(self, path: Path) -> None:
        """Raises OSError."""
        write_atomically(path, json.dumps(dataclasses.asdict(self)).encode())


class Spool:
    """The file, for the one forwarder that appends to it."""

    def __init__(self, path: Path, longest: int = MAX_SPOOL) -> None:
        """Raises StoreError. What an earlier forwarder left in the middle of a frame is cut off."""
        self._longest = longest
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self.size = _whole(path)
            os.ftruncate(self._fd, self.size)
        except OSError as error:
            raise StoreError(f"cannot keep spans in {path}: {error.strerror}") from error

    def append(self, payload: bytes) -> bool:
        """Add a batch as a whole, or nothing and False: the file has no room, or the disk."""
        content = frame(payload)
        if len(payload) > MAX_STORED or self.size + len(content) > self._longest:
            return False
        try:
            written = os.write(self._fd, content)
            if written < len(content):
                os.ftruncate(self._fd, self.size)
                return False
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            return False
        self.size += len(content)
        return True

    def close(self) -> None:
        """Once."""
        os.close(self._fd)


def read_frame(path: Path, offset: int) -> tuple[bytes, int] | None:
    """The frame at `offset` and where the next one is; None where no whole one is there. Raises StoreError."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            header = file.read(NUMBER.size)
            length = NUMBER.unpack(header)[0] if len(header) == NUMBER.size else -1
            payload = file.read(length) if 0 <= length <= MAX_STORED else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return (payload, offset + NUMBER.size + length) if len(payload) == length else None


def frames(path: Path) -> Iterator[bytes]:
    """All whole frames of a file; one that isn't there has none. Raises StoreError."""
    offset = 0
    while found := read_frame(path, offset):
        payload, offset = found
        yield payload


def _whole(path: Path) -> int:
    """Where the last whole frame ends."""
    offset = 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            file.seek(offset)
            header = file.read(NUMBER.size)
            if len(header) < NUMBER.size:
                return offset
            end = offset + NUMBER.size + NUMBER.unpack(header)[0]
            if end > size or end - offset > MAX_STORED + NUMBER.size:
                return offset
            offset = end
