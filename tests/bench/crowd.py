"""Many clones of one template: what memory they take, and how long their starts take when there are many at a time."""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.report import Row
from support import processes

__all__ = ["Crowd", "measure", "pss"]

_TIMEOUT = 240
_AT_ONCE = 5
# Whose command lines have the sandbox's name, or its directory's.
_MEMORY = "/memfd:guest-memory"
_MIB = 1 << 20


class Memory(NamedTuple):
    """Of one sandbox, in MiB: QEMU's translation buffer (emulation alone has one), the guest's pages, all else."""

    buffer: float
    guest: float
    rest: float


class Crowd(NamedTuple):
    """`memory` by how many lived, a mean sandbox's; seconds of starts, one after the other and five at a time."""

    memory: dict[int, Memory]
    single: list[float]
    crowded: list[float]
    failed: int

    def rows(self, starts: Sequence[float]) -> list[Row]:
        """What is promised of it; `starts` are those to first output."""
        most = max(self.memory)
        last = self.memory[most]
        beyond = last.guest + last.rest
        sums = [memory.guest + memory.rest for memory in self.memory.values()]
        p95 = statistics.quantiles(self.crowded, n=20)[-1] if len(self.crowded) > 1 else max(self.crowded)
        return [
            Row(f"memory of one of {most} busybox clones, but for the translation buffer", [beyond], None, 120, "MiB"),
            Row("of it the guest's pages, also those that nobody maps", [last.guest], None, None, "MiB"),
            Row("QEMU's translation buffer", [last.buffer], None, None, "MiB"),
            Row(f"memory of one: most ÷ least, of {' and '.join(map(str, self.memory))} clones", [max(sums)],
                [min(sums)], 1.1),
            Row(f"{len(self.crowded) + self.failed} sandboxes, {_AT_ONCE} at a time: failed", [self.failed], None, 0),
            Row(f"whole runs, {_AT_ONCE} at a time: p95 ÷ the median of one alone", [p95], self.single, 3),
        ]  # fmt: skip


def measure(command: Sequence[str], clones: int, starts: int) -> Crowd:
    """`command` is `kata-runtime run` with a configuration that has a template."""
    memory: dict[int, Memory] = {}
    with _sleeping(command) as more:
        for count in sorted({max(1, clones // 4), max(1, clones // 2), clones}):
            memory[count] = _mean([_memory(name) for name in more(count)])
    single = [_whole(command, f"single-{number}") for number in range(5)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        taken = list(pool.map(lambda number: _whole(command, f"crowd-{number}"), range(starts)))
    return Crowd(memory, [each for each in single if each], [each for each in taken if each], taken.count(0.0))


@contextmanager
def _sleeping(command: Sequence[str]) -> Iterator["_More"]:
    """Sandboxes that sleep, as many as are asked for; they end with the block."""
    more = _More(command)
    try:
        yield more
    finally:
        for child in more.children.values():
            child.terminate()
        for child in more.children.values():
            child.wait(_TIMEOUT)


class _More:
    def __init__(self, command: Sequence[str]) -> None:
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._command = command

    def __call__(self, count: int) -> list[str]:
        """Names of all that live, `count` of them."""
        while len(self.children) < count:
            name = f"bench-{os.getpid()}-{len(self.children)}x"
            argv = [*self._command, "--name", name, "--", "sh", "-c", "echo up; trap 'exit 0' TERM; sleep 1000 & wait"]
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self.children[name] = child
            assert child.stdout is not None
            if child.stdout.readline() != b"up\n":
                raise SystemExit(f"sandbox {name} did not start")
        return list(self.children)


def _whole(command: Sequence[str], name: str) -> float:
    """Seconds of a whole run; 0 where it failed."""
    begin = time.monotonic()
    argv = [*command, "--name", f"{name}-{os.getpid()}", "--", "true"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_TIMEOUT)
    return time.monotonic() - begin if done.returncode == 0 else 0.0


def pss(pid: int) -> int:
    """Bytes of memory of a process, what it shares by share (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"the kernel does not tell the memory of process {pid}")


def _memory(name: str) -> Memory:
    buffer = rest = 0
    for pid in processes.pids(name.encode()):
        for head, share in _mappings(pid):
            if _MEMORY in head:
                continue  # its file's blocks tell more: pages that were copied and that nobody has mapped
            # What QEMU translates is written and run, and no file's.
            if re.search(r" rwx[ps] .* 0 *$", head):
                buffer += share
            else:
                rest += share
    return Memory(buffer / _MIB, _guest(name) / _MIB, rest / _MIB)


def _mappings(pid: int) -> Iterator[tuple[str, int]]:
    head = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            head = line
        elif line.startswith("Pss:"):
            yield head, int(line.split()[1]) << 10


def _guest(name: str) -> int:
    machine = processes.find(b"qemu-system", f"sandbox-{name},".encode())
    for fd, target in processes.open_files(machine).items():
        if target.startswith(_MEMORY):
            return fd.stat().st_blocks * 512
    raise SystemExit(f"the guest's memory of {name} is not found: is it a clone?")


def _mean(each: Sequence[Memory]) -> Memory:
    return Memory(*(statistics.fmean(values) for values in zip(*each, strict=True)))
