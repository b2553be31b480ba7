"""What is written down of a template."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kata_common.documents import parse_json
from kata_common.files import Identity, identify

__all__ = ["FORMAT", "Meta", "boot_id"]

# Of the files and what is in them. Another format is another template.
FORMAT: Final = 2
_NAME: Final = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}")

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """That of the host's running kernel."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a template. `inputs` are the files that it was made from; `memory` in MiB.

    The fields from `name` on are how its files are called, and what they must look like (`store`); `taken` is what its
    memory takes, in bytes. `trace` is the W3C traceparent of its own boot's root, empty where that was not traced.
    """

    key: str
    made: float
    memory: int
    vcpus: int
    inputs: tuple[Identity, ...]
    settings: Mapping[str, Any]
    trace: str = ""
    name: str = ""
    memory_bytes: int = 0
    memory_looks: tuple[int, ...] = ()
    state_sha256: str = ""
    taken: int = 0
    format: int = FORMAT

    @property
    def stale(self) -> bool:
        """Whether one of the files that it was made from is another one now, or gone, or the host has booted since."""
        if self.settings.get("boot") != boot_id():
            return True
        try:
            return any(identify(known[0]) != known for known in self.inputs)
        except OSError:
            return True

    @classmethod
    def parse(cls, text: bytes) -> "Meta":
        """Raises ValueError."""
        try:
            fields = parse_json(text)
            fields["inputs"] = tuple(tuple(known) for known in fields["inputs"])
            fields["memory_looks"] = tuple(fields["memory_looks"])
            meta = cls(**fields)
            if not _NAME.fullmatch(meta.name):
                raise ValueError(f"{meta.name[:100]!r} is no name of ours")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"its description can't be read: {error}") from error
        if meta.format != FORMAT:
            raise ValueError(f"its format is {meta.format}, not {FORMAT}")
        return meta
