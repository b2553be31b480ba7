"""What was found out about this host, for `kata-runtime check`."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Verdict"]


class Verdict(StrEnum):
    """Of one thing, or of the host; the worst counts."""

    OK = "ok"
    SLOWER = "slower"
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `hint` says what to do about it."""

    name: str
    verdict: Verdict
    detail: str
    hint: str = ""
