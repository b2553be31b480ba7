"""`ctr run` with Debian's containerd and the installed shim, whose VMs run under KVM."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_telemetry.store import Store
from kata_telemetry.trace import load_store
from support.containerd import Containerd, eventually, running, task
from support.kata_containers import KataContainers, ancestors, vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

# Seconds for what containerd does by itself, in an emulated L1.
PATIENCE = 60


@pytest.fixture
def kata(busybox: Path, artifacts: Path) -> Iterator[KataContainers]:
    """A containerd that finds the installed shim on its PATH; its sandboxes are traced on both sides."""
    (artifacts / "configuration.toml").write_text(
        f'[runtime]\ntrace_dir = "{artifacts}/traces"\nenable_tracing = true\ncreate_container_timeout = 120\n'
        "[agent.kata]\nenable_tracing = true\ndial_timeout = 240\n"
    )
    with running(Path(sys.executable).parent, busybox) as containerd:
        yield KataContainers(containerd, artifacts)
        shutil.copy(containerd.log, artifacts)


def gone(containerd: Containerd) -> bool:
    return not list((containerd.state / "io.containerd.runtime.v2.task/default").glob("*"))


def test_in_the_foreground(kata: KataContainers) -> None:
    done = kata.run("one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    eventually(lambda: gone(kata.containerd), "the task's directory is left", seconds=PATIENCE)
    trace = kata.trace("one")
    assert trace.services == ["kata", "kata-agent"]
    (started,) = (span for span in trace.spans if span.name == "start_container")
    assert ancestors(started)[-2:] == ["Start", "rootSpan"]


def test_detached(kata: KataContainers) -> None:
    """Start, exec, kill, delete; and nothing is left of the VM."""
    kata.detached("box", "sleep", "1000")
    pid, state = task(kata.containerd, "box") or (0, "")
    assert (state, vm_pids("box")) == ("RUNNING", [pid])
    command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    assert "-accel kvm" in command
    assert "vhost-vsock-pci" in command
    done = kata.exec("box", "e1", "sh", "-c", "echo inside; exit 3")
    assert (done.returncode, done.stdout) == (3, b"inside\n")
    kata.tasks("kill", "--signal", "SIGKILL", "box")
    eventually(
        lambda: task(kata.containerd, "box") == (pid, "STOPPED"), "the killed container goes on", seconds=PATIENCE
    )
    assert b"exit code 137" in kata.tasks("delete", "box", check=False).stderr
    eventually(lambda: gone(kata.containerd), "the task's directory is left", seconds=PATIENCE)
    assert vm_pids("box") == []


def test_qemu_is_killed(kata: KataContainers) -> None:
    """A VM that dies is a failed container, and says why."""
    kata.detached("mortal", "sleep", "1000")
    (pid,) = vm_pids("mortal")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: (task(kata.containerd, "mortal") or (0, ""))[1] == "STOPPED", "nobody noticed", seconds=PATIENCE)
    assert b"exit code 137" in kata.tasks("delete", "mortal", check=False).stderr
    eventually(lambda: gone(kata.containerd), "the task's directory is left", seconds=PATIENCE)
    (directory,) = (kata.artifacts / "traces").iterdir()
    trace = load_store(Store(directory))
    assert trace is not None
    assert trace.root.name == "rootSpan"
