"""How busy the host was while a sandbox started: what makes a start slow that no span of it can show."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kata_telemetry.conventions import CPU_PRESSURE, HOST_CPUS, IO_PRESSURE, LOAD, MEMORY_PRESSURE, SLOW, STEAL
from kata_telemetry.span import Span

__all__ = ["Conditions"]

_PROC = Path("/proc")
_PRESSURES = {"cpu": CPU_PRESSURE, "io": IO_PRESSURE, "memory": MEMORY_PRESSURE}


@dataclass(frozen=True, slots=True)
class Conditions:
    """One sample: counters since the host's boot. What a kernel does not tell is left out.

    `stalled` is µs by resource (proc(5): /proc/pressure, `some`), `steal` and `all_cpu` are ticks of /proc/stat.
    """

    at: float
    load: float
    stalled: Mapping[str, int]
    steal: int = 0
    all_cpu: int = 0

    @classmethod
    def sample(cls, proc: Path = _PROC) -> Self:
        """Now; takes about 0.1 ms. Never raises."""
        stalled, steal, everything, load = {}, 0, 0, 0.0
        for name in _PRESSURES:
            with suppress(OSError, ValueError, IndexError):
                some = (proc / "pressure" / name).read_text().splitlines()[0]
                stalled[name] = int(some.rpartition("total=")[2])
        with suppress(OSError, ValueError, IndexError), (proc / "stat").open() as file:
            # user nice system idle iowait irq softirq steal; guest times are in user already.
            ticks = [int(field) for field in file.readline().split()[1:9]]
            steal, everything = ticks[7], sum(ticks)
        with suppress(OSError, ValueError, IndexError):
            load = float((proc / "loadavg").read_text().split()[0])
        return cls(time.monotonic(), load, stalled, steal, everything)

    def note(self, span: Span, threshold: float = 0.0) -> None:
        """On `span`, what has been since this sample; once. A start that took longer than `threshold` s was slow."""
        if LOAD not in span.attributes:
            if threshold and time.monotonic() - span.start / 1e9 > threshold:
                span.set(**{SLOW: True})
            span.set(**self.until(type(self).sample()))

    def until(self, later: Self) -> dict[str, float | int]:
        """Attributes about the time from this sample to a later one: shares from 0 to 1, and the load at its begin."""
        found: dict[str, float | int] = {LOAD: self.load, HOST_CPUS: len(os.sched_getaffinity(0))}
        passed = (later.at - self.at) * 1e6
        for name, attribute in _PRESSURES.items():
            if name in self.stalled and name in later.stalled and passed > 0:
                found[attribute] = round(min((later.stalled[name] - self.stalled[name]) / passed, 1.0), 3)
        if later.all_cpu > self.all_cpu:
            found[STEAL] = round((later.steal - self.steal) / (later.all_cpu - self.all_cpu), 3)
        return found
