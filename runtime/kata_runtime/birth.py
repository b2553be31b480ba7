"""When this process began, and whether it was there before it was wanted. Imports nothing heavy."""

import os
import time
from pathlib import Path

__all__ = ["born", "is_prepared", "own_start"]

_born = 0


def born(when: int) -> None:
    """This process was there before it was wanted: what it is for began `when` (CLOCK_MONOTONIC, ns)."""
    global _born  # noqa: PLW0603 - a process has one
    _born = when


def is_prepared() -> bool:
    """Whether it was there before it was wanted."""
    return bool(_born)


def own_start() -> int:
    """When this process was made, by CLOCK_MONOTONIC (ns); up to a clock tick (10 ms) too early."""
    if _born:
        return _born
    # proc(5): field 22, in ticks since boot; the name before it may contain anything but ends with the last ')'.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.monotonic_ns() - max(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started, 0)
