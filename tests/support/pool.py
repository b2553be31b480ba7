"""Processes of a pool that a test serves."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kata_runtime.sandbox.state import Directories

__all__ = ["clear", "is_ready", "members", "wait_for", "wait_for_member"]

PATIENCE = 150


def members() -> list[int]:
    """Processes of the pool below this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        # Orphans are the test's own (support.leaks).
        if b"kata_runtime.member" in command and int(parent) == os.getpid():
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    """What other processes do by themselves tells nobody when they have."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _ready(pid: int) -> bool:
    """Whether it only waits: its guest has been rehearsed, and it runs at a start's own pace again."""
    try:
        return Path(f"/run/kata/pool-{pid}").exists() and os.getpriority(os.PRIO_PROCESS, pid) == 0
    except ProcessLookupError:
        return False


def is_ready() -> bool:
    """Whether one waits to be taken."""
    return any(_ready(pid) for pid in members())


def wait_for_member() -> int:
    """The process id of one that waits to be taken."""
    wait_for(is_ready)
    return next(pid for pid in members() if _ready(pid))


def clear() -> None:
    """Wait for the end of all members; what one left that was killed is for the next start to remove."""
    wait_for(lambda: not members())
    Directories().sweep()
    for path in Path("/run/kata").glob("pool-*"):
        with suppress(OSError):  # an empty one would go after a minute
            path.rmdir()
