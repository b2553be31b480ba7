"""What the agent and its guest are like, as text for Prometheus. Names and labels are Kata's (docs/design/
kata-2-0-metrics.md); all of it is read from /proc (proc(5)), and what can't be read is left out."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from kata_agent.guest.network import counters

__all__ = ["exposition"]

_PROC: Final = Path("/proc")
_CPU: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
# /proc/diskstats, after the name (Documentation/admin-guide/iostats.rst).
_DISK: Final = (
    *("reads", "merged", "sectors_read", "time_reading", "writes", "writes_merged", "sectors_written", "time_writing"),
    *("in_progress", "time_in_progress", "weighted_time_in_progress"),
)
MAX_LABELS: Final = 512

Sample = tuple[dict[str, str], float]


def exposition(proc: Path = _PROC) -> str:
    """All of it."""
    lines: list[str] = []
    for name, help_text, samples in _families(proc):
        listed: list[str] = []
        with suppress(OSError, ValueError, IndexError):
            for labels, value in samples:
                shown = ",".join(f'{key}="{text}"' for key, text in labels.items())
                listed.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
        if listed:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", *listed[:MAX_LABELS]]
    return "".join(f"{line}\n" for line in lines)


def _families(proc: Path) -> Iterator[tuple[str, str, Iterator[Sample]]]:
    yield "kata_agent_threads", "Threads of the agent.", iter([({}, threading.active_count())])
    yield "kata_agent_total_rss", "Resident memory of the agent, bytes.", _status(proc, "VmRSS")
    yield "kata_agent_total_vm", "Virtual memory of the agent, bytes.", _status(proc, "VmSize")
    yield "kata_agent_total_time", "CPU time of the agent, seconds.", iter([({}, sum(os.times()[:2]))])
    yield "kata_agent_io_stat", "Input and output of the agent.", _pairs(proc / "self/io")
    yield "kata_guest_load", "Load of the guest.", _load(proc)
    yield "kata_guest_tasks", "Tasks of the guest.", _tasks(proc)
    yield "kata_guest_cpu_time", "CPU time of the guest, clock ticks.", _cpu(proc)
    yield "kata_guest_meminfo", "Memory of the guest, bytes.", _pairs(proc / "meminfo", 1024)
    yield "kata_guest_vm_stat", "Counters of the guest's memory.", _pairs(proc / "vmstat")
    yield "kata_guest_netdev_stat", "Network devices of the guest.", _network()
    yield "kata_guest_diskstat", "Disks of the guest.", _disks(proc)


def _status(proc: Path, wanted: str) -> Iterator[Sample]:
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith(f"{wanted}:"):
            yield {}, int(line.split()[1]) * 1024


def _pairs(path: Path, unit: int = 1) -> Iterator[Sample]:
    """`Name: number [kB]`, a line each."""
    for line in path.read_text().splitlines():
        name, number, *kilobytes = line.replace(":", " ").split()
        item = name.lower().replace("(", "_").replace(")", "")
        yield {"item": item}, int(number) * (unit if kilobytes else 1)


def _load(proc: Path) -> Iterator[Sample]:
    for name, number in zip(("load1", "load5", "load15"), (proc / "loadavg").read_text().split(), strict=False):
        yield {"item": name}, float(number)


def _tasks(proc: Path) -> Iterator[Sample]:
    running, _, total = (proc / "loadavg").read_text().split()[3].partition("/")
    yield {"item": "cur"}, int(running)
    yield {"item": "max"}, int(total)


def _cpu(proc: Path) -> Iterator[Sample]:
    for line in (proc / "stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu"):
            for item, number in zip(_CPU, numbers, strict=False):
                yield {"cpu": name.removeprefix("cpu") or "total", "item": item}, int(number)


def _network() -> Iterator[Sample]:
    for entry in counters():
        for field, value in entry._asdict().items():
            if field != "name":
                kind, _, unit = field.partition("_")
                item = f"{'recv' if kind == 'rx' else 'sent'}_{unit}"
                yield {"interface": entry.name, "item": item}, value


def _disks(proc: Path) -> Iterator[Sample]:
    for line in (proc / "diskstats").read_text().splitlines():
        name, *numbers = line.split()[2:]
        for item, number in zip(_DISK, numbers, strict=False):
            yield {"disk": name, "item": item}, int(number)
