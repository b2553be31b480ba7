"""Processor time of the processes that serve a sandbox: it tells on a busy machine what elapsed time does not."""

from pathlib import Path

from support import processes

__all__ = ["MARKS", "find", "seconds"]

# What the command lines of a sandbox's processes have, by who they are.
MARKS = {"VM": b"qemu-system", "vsock": b"kata_runtime.hypervisor.vsock.device"}


def find(mark: bytes, name: str) -> int:
    """The process of this sandbox. Raises LookupError."""
    return processes.find(mark, name.encode())


def seconds(pid: int) -> float:
    """Processor time that a process's threads have had (Documentation/scheduler/sched-stats.rst)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
