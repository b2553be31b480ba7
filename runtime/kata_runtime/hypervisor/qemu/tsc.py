"""How fast the host's time stamp counter runs: what an emulated guest would have to find out by measuring.

Under TCG the guest's counter is the host's (QEMU: cpu_get_ticks adds an offset to cpu_get_host_ticks, `rdtsc` on x86).
No file tells its rate; "cpu MHz" in /proc/cpuinfo is that of the moment. So it is read twice here, with as much time
between as other work takes, and by nothing but the instruction itself.
"""

import mmap
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["TscMeter", "tsc_reader"]

# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")
# The reading that took least of these counts; a thread that is preempted in one is not in all.
_READINGS: Final = 16
# Below this (ns) a rate would be known to worse than 1 in 1000.
_SHORTEST: Final = 2_000_000


def tsc_reader(cpuinfo: Path = Path("/proc/cpuinfo")) -> Callable[[], int] | None:
    """A function that reads the counter; None where there is none of a constant rate, or no memory for code."""
    if platform.machine() != "x86_64":
        return None
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    if "constant_tsc" not in flags:
        return None
    import ctypes

    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # SELinux, for one, may forbid it
    code.write(_RDTSC)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def read(_keep: mmap.mmap = code) -> int:
        return int(function())

    return read


class TscMeter:
    """Begins to measure when it is made. `read` is for tests, as is `now`, CLOCK_MONOTONIC in ns."""

    def __init__(self, read: Callable[[], int] | None, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._read = read
        self._now = now
        self._first = self._reading()

    def khz(self) -> int:
        """The counter's rate since the beginning; 0 where it is not known."""
        (tsc, at), (first_tsc, first_at) = self._reading(), self._first
        if self._read is None or at - first_at < _SHORTEST or tsc <= first_tsc:
            return 0
        return round((tsc - first_tsc) * 1_000_000 / (at - first_at))

    def _reading(self) -> tuple[int, int]:
        """The counter, and when that was."""
        if self._read is None:
            return 0, 0
        readings = []
        for _ in range(_READINGS):
            before = self._now()
            tsc = self._read()
            after = self._now()
            readings.append((after - before, tsc, (before + after) // 2))
        _, tsc, at = min(readings)
        return tsc, at
