"""What a runtime tells the trace forwarder about a sandbox that it traces: `trace.json` in the sandbox's directory.

The directory (`/run/kata/<sandbox-id>`) is root's alone, so what is in it was said by the host. By it a span belongs to
the sandbox whose socket or context id it came from, whatever the guest says.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from kata_common.documents import parse_json
from kata_common.files import write_atomically

__all__ = ["Announcement"]

_NAME: Final = "trace.json"


@dataclass(frozen=True, slots=True)
class Announcement:
    """One sandbox. Ids in hex, "" where the runtime itself does not trace and the agent makes the root."""

    sandbox_id: str
    # Directory of the sandbox's trace.
    store: str
    # When it began (host time, ns), and the runtime's host time minus CLOCK_MONOTONIC: wall clocks step.
    since: int
    clock_offset: int
    # vsock context id; 0 where the guest comes through a socket of its own.
    cid: int = 0
    trace_id: str = ""
    root_id: str = ""

    def write(self, directory: Path) -> None:
        """Into the sandbox's directory. Raises OSError."""
        write_atomically(directory / _NAME, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The announcement in a sandbox's directory; None where there is none that can be read."""
        try:
            content = parse_json((directory / _NAME).read_bytes())
            known = {item.name: content[item.name] for item in dataclasses.fields(cls)}
            if any(type(known[item.name]) is not item.type for item in dataclasses.fields(cls)):
                return None
            bytes.fromhex(known["trace_id"] + known["root_id"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return cls(**known)
