"""Deaths around `kata-runtime run`: of the VM, of a helper, of the runtime itself."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.kata import Kata
from support.processes import children

pytestmark = pytest.mark.vm


def running(kata: Kata, name: str) -> "subprocess.Popen[bytes]":
    """A sandbox whose workload has started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = kata.start("run", "--name", name, "--", "sh", "-c", "echo up; sleep 1000", **pipes)
    assert child.stdout is not None
    if child.stdout.readline() != b"up\n":
        pytest.fail(f"the sandbox did not start: {child.communicate()[1].decode()}")
    return child


def test_a_vm_that_dies_is_an_error(kata: Kata) -> None:
    child = running(kata, "mortal")
    os.kill(children(child.pid)["qemu-system-x86_64"], signal.SIGKILL)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 125
    assert b"the VM ended while a container was running (killed by signal 9)" in errors
    assert b"Traceback" not in errors


def test_a_guest_that_hangs_is_an_error(kata: Kata) -> None:
    child = running(kata.configure("agent.kata", health_check_request_timeout_ms=3000), "hung")
    os.kill(children(child.pid)["qemu-system-x86_64"], signal.SIGSTOP)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 125
    assert b"the VM ended while a container was running (the agent has not answered for 3 s)" in errors


def test_a_killed_runtime_takes_everything_with_it(kata: Kata) -> None:
    child = running(kata, "killed")
    fds = [os.pidfd_open(pid) for pid in children(child.pid).values()]
    assert len(fds) == 3  # QEMU, virtiofsd, the vsock backend
    child.kill()
    child.communicate(timeout=30)
    for fd in fds:
        assert select.select([fd], [], [], 10)[0], "a helper outlives the runtime"
        os.close(fd)
    assert Path("/run/kata/killed").exists()
    assert kata.run("true").returncode == 0
    assert not Path("/run/kata/killed").exists()  # the next run cleans up


def test_a_killed_runtime_leaves_a_trace_with_a_root(kata: Kata) -> None:
    child = running(kata.tracing(runtime=True, agent=True), "killed")
    child.kill()
    child.communicate(timeout=30)
    shown = kata("trace", "show", "killed").stdout.decode()
    assert "rootSpan" in shown
    assert "StartVM" in shown
    assert kata.run("true").returncode == 0  # which also cleans up


@pytest.mark.parametrize(
    ("program", "shown"), [("virtiofsd", "virtiofsd"), (Path(sys.executable).resolve().name, "the vsock backend")]
)
def test_a_helper_that_dies_ends_the_run(kata: Kata, program: str, shown: str) -> None:
    child = running(kata, "helpless")
    os.kill(children(child.pid)[program], signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 125
    assert f"the VM ended while a container was running ({shown}" in errors.decode()
