"""Which finished traces are worth keeping: by a rule when a sandbox has ended (tail sampling), and without room.

Keep.parse("failed, slow, 1 %")     # what failed, what was slow to start, and one in a hundred of the rest
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from kata_common.files import Lock
from kata_telemetry.conventions import SLOW
from kata_traces.store.abandoned import KILLED
from kata_traces.store.store import Meta, Store, discard, stores

__all__ = ["Keep", "KeepError", "Retention", "failed", "prune", "settle", "slow"]

_RANGE: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Retention:
    """How many finished traces, and how many bytes of them, are kept."""

    traces: int = 100
    size: int = 256 * 1024 * 1024


class KeepError(ValueError):
    """A rule that can't be understood; says which part and what may be there."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The rule. `share` (0 to 1) is of what is neither failed nor slow: by trace id, so that all decide alike."""

    failed: bool = True
    slow: bool = True
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """`failed`, `slow` and a share such as `1 %`, in any order, by commas; empty keeps all. Raises KeepError."""
        parts = [part.strip().lower() for part in text.split(",") if part.strip()]
        if not parts:
            return cls()
        failed = slow = False
        share = 0.0
        for part in parts:
            if part == "failed":
                failed = True
            elif part == "slow":
                slow = True
            else:
                share = _share(part)
        return cls(failed, slow, share)

    def keeps(self, meta: Meta) -> bool:
        """Whether a finished trace stays."""
        if (self.failed and failed(meta)) or (self.slow and slow(meta)):
            return True
        # The last 8 bytes are random, also in a trace id that another system made (W3C Trace Context, level 2).
        return int(meta.trace_id[-16:] or "0", 16) < self.share * _RANGE


def _share(part: str) -> float:
    number = part.removesuffix("%").strip()
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1 or not part.endswith("%"):
        raise KeepError(f"{part[:40]!r} is neither 'failed', nor 'slow', nor a share such as '1 %'")
    return share


def failed(meta: Meta) -> bool:
    """Whether it did not end well."""
    return bool(meta.failure) or meta.outcome in ("error", "failed", KILLED)


def slow(meta: Meta) -> bool:
    """Whether its start took longer than `slow_start_threshold`."""
    return SLOW in meta.labels


def settle(store: Store, keep: Keep) -> bool:
    """Remove a finished trace that is not worth keeping; whether it stays."""
    return keep.keeps(store.meta()) or not discard(store)


def prune(trace_dir: Path, retention: Retention, keep: Path) -> int:
    """Remove finished traces beyond `retention`, never `keep` or a live one. Returns how many went.

    What failed or was slow stays longer: the oldest of the others go first, as long as these are the half of it.
    """
    worthy: list[Store] = []
    others: list[Store] = []
    for store in stores(trace_dir):
        if store.directory == keep or store.live or Lock.held(store.export_lock_path):
            continue
        meta = store.meta()
        (worthy if failed(meta) or slow(meta) else others).append(store)
    sizes = {store.directory: store.size() for store in (*worthy, *others)}
    size, removed = sum(sizes.values()), 0
    while len(worthy) + len(others) > retention.traces or size > retention.size:
        goes = others if len(others) > len(worthy) or not worthy else worthy
        oldest = goes.pop()
        size -= sizes[oldest.directory]
        removed += discard(oldest)
    for leftover in trace_dir.glob(".removing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return removed
