"""The two files of a store that go to a collector, each with its own progress and its own lock.

`spans.jsonl` is the runtime's (with the agent's spans where they come through it), `agent.otlp` the trace forwarder's.
"""

import os
from pathlib import Path
from typing import Protocol

from kata_telemetry import otlp
from kata_telemetry.wire import NUMBER, frame
from kata_traces.store.errors import StoreError
from kata_traces.store.spool import read_frame
from kata_traces.store.store import Store

__all__ = ["AgentPart", "Part", "RuntimePart", "parts"]


class Part(Protocol):
    """A file of records, each of which is one export request."""

    @property
    def path(self) -> Path: ...

    @property
    def progress_path(self) -> Path:
        """Where it is noted how far each collector has it."""
        ...

    @property
    def lock_path(self) -> Path:
        """Held by who sends it."""
        ...

    def record(self, offset: int) -> bytes:
        """The whole record at `offset`, as it is in the file; b"" where there is none. Raises StoreError."""
        ...

    def request(self, record: bytes) -> tuple[bytes, int]:
        """A record as a serialized request, and how many spans it has. Raises otlp.MalformedOtlpError."""
        ...

    def end(self) -> int:
        """Where the last whole record ends."""
        ...


class RuntimePart:
    """Lines of OTLP/JSON."""

    def __init__(self, store: Store) -> None:
        self.path = store.spans
        self.progress_path = store.directory / "export.json"
        self.lock_path = store.export_lock_path

    def record(self, offset: int) -> bytes:
        """See Part."""
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                line = file.readline()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        # Without its newline it is still being written, or its writer died.
        return line if line.endswith(b"\n") else b""

    def request(self, record: bytes) -> tuple[bytes, int]:
        """See Part."""
        if not record.strip():
            return b"", 0
        request = otlp.to_request(record)
        return request.SerializeToString(), otlp.count(request)

    def end(self) -> int:
        """See Part."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                while end > 0:
                    start = max(end - 65536, 0)
                    file.seek(start)
                    newline = file.read(end - start).rfind(b"\n")
                    if newline >= 0:
                        return start + newline + 1
                    end = start
        except OSError:
            pass
        return 0


class AgentPart:
    """Frames of kata_traces.store.spool."""

    def __init__(self, store: Store) -> None:
        self.path = store.agent_spans
        self.progress_path = store.directory / "forward.json"
        self.lock_path = store.directory / "forward.lock"

    def record(self, offset: int) -> bytes:
        """See Part."""
        found = read_frame(self.path, offset)
        return frame(found[0]) if found else b""

    def request(self, record: bytes) -> tuple[bytes, int]:
        """See Part."""
        payload = record[NUMBER.size :]
        return payload, otlp.count(otlp.parse(payload))

    def end(self) -> int:
        """See Part."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def parts(store: Store) -> list[Part]:
    """Those that the store has."""
    found: list[Part] = [RuntimePart(store)]
    if store.agent_spans.exists():
        found.append(AgentPart(store))
    return found
