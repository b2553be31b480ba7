"""Figures of a process, as /proc has them (proc(5)): pure functions of its files' text, and one that reads them."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Process", "interfaces", "io", "read", "stat", "status"]

_STATUS = re.compile(r"(?:Vm|Rss|Hugetlb)\w+|(?:non)?voluntary_ctxt_switches")
_RECEIVED = ("bytes", "packets", "errs", "drop", "fifo", "frame", "compressed", "multicast")
_SENT = ("bytes", "packets", "errs", "drop", "fifo", "colls", "carrier", "compressed")
# Of one process; who has more than these is none that we know.
_MAX_INTERFACES = 64


@dataclass(frozen=True)
class Process:
    """Its figures by the names that Kata gives them; sizes as in /proc (KiB in `status`)."""

    pid: int
    status: dict[str, float] = field(default_factory=dict)
    stat: dict[str, float] = field(default_factory=dict)
    io: dict[str, float] = field(default_factory=dict)
    interfaces: dict[tuple[str, str], float] = field(default_factory=dict)
    threads: int = 0
    descriptors: int = 0
    max_descriptors: int = 0
    # Seconds since the epoch.
    started: float = 0.0


def status(text: str) -> dict[str, float]:
    """Memory and context switches of /proc/PID/status; `threads` too."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdecimal() and (_STATUS.fullmatch(name) or name == "Threads"):
            found[name.lower()] = float(number[0])
    return found


def stat(text: str) -> dict[str, float]:
    """CPU time in clock ticks, and `starttime`, of /proc/PID/stat; its second field may be anything."""
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return {}
    names = {"utime": 11, "stime": 12, "cutime": 13, "cstime": 14, "starttime": 19}
    return {name: float(fields[place]) for name, place in names.items()}


def io(text: str) -> dict[str, float]:
    """/proc/PID/io; Kata writes the names without underscores."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.replace("_", ""): float(value) for name, _, value in pairs if value.strip().isdecimal()}


def interfaces(text: str) -> dict[tuple[str, str], float]:
    """/proc/PID/net/dev, by interface and item."""
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines()[2 : 2 + _MAX_INTERFACES]:
        name, _, rest = line.strip().rpartition(":")
        numbers = rest.split()
        if len(numbers) == len(_RECEIVED) + len(_SENT) and all(number.isdecimal() for number in numbers):
            items = [*(f"recv_{item}" for item in _RECEIVED), *(f"sent_{item}" for item in _SENT)]
            found |= {(name, item): float(number) for item, number in zip(items, numbers, strict=True)}
    return found


def read(pid: int, proc: Path = Path("/proc")) -> Process:
    """The figures of a process; what it does not show, or one that is gone, has none."""
    directory = proc / str(pid)

    def text(name: str) -> str:
        with suppress(OSError):
            return (directory / name).read_text(errors="replace")
        return ""

    found, ticks = status(text("status")), stat(text("stat"))
    threads = found.pop("threads", 0.0)
    limit = re.search(r"Max open files\s+(\d+)", text("limits"))
    descriptors = 0
    with suppress(OSError):
        descriptors = sum(1 for _ in (directory / "fd").iterdir())
    booted = re.search(r"^btime (\d+)", (proc / "stat").read_text() if found else "", re.MULTILINE)
    begun = ticks.pop("starttime", 0.0) / os.sysconf("SC_CLK_TCK")
    return Process(
        pid,
        found,
        ticks,
        io(text("io")),
        interfaces(text("net/dev")),
        threads=int(threads),
        descriptors=descriptors,
        max_descriptors=int(limit[1]) if limit else 0,
        started=int(booted[1]) + begun if booted else 0.0,
    )
