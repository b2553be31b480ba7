"""Processes that end between two looks."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from support import processes

LOOKS: list[Callable[[int], object]] = [
    processes.memory,
    processes.processor_time,
    processes.descriptors,
    lambda pid: processes.mappings(pid, "libc"),
    processes.children,
]


@pytest.mark.parametrize("look", LOOKS[:4])
def test_a_zombie_has_ended(look: Callable[[int], object]) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        # Root may still list the descriptors of a zombie: there are none.
        if look is processes.descriptors:
            return
        with pytest.raises(ProcessLookupError, match="has ended"):
            look(pid)
    finally:
        os.waitpid(pid, 0)


@pytest.mark.parametrize("look", LOOKS)
def test_one_that_is_gone_has_ended(look: Callable[[int], object]) -> None:
    done = subprocess.Popen([sys.executable, "-Sc", ""])
    done.wait()
    with pytest.raises(ProcessLookupError, match="has ended"):
        look(done.pid)


def test_one_that_lives() -> None:
    # It says that it runs: Popen may be back a moment before a program's command line can be seen.
    command = [sys.executable, "-Sc", "print(flush=True); input()", "a-mark-of-ours"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        try:
            assert processes.find(b"a-mark-of-ours") == child.pid
            assert processes.pids(b"a-mark-of-ours", b"-Sc", parents=True) == [child.pid]
            assert child.pid in processes.children(os.getpid()).values()
            assert processes.memory(child.pid) > 0
            assert processes.descriptors(child.pid) >= 3
            assert processes.processor_time(child.pid) >= 0
            assert processes.mappings(child.pid, "[stack]") in (0, 1)
        finally:
            child.kill()
    with pytest.raises(LookupError, match="a-mark-of-ours"):
        processes.find(b"a-mark-of-ours")
