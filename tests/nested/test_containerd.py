"""`ctr run` with Debian's containerd and the installed shim, whose VMs run under KVM."""

import os
import signal
from pathlib import Path

import pytest

from kata_traces.read.trace import load_store
from kata_traces.store.store import Store
from support.containerd import Containerd, eventually, task
from support.kata_containers import KataContainers, ancestors, vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

# Seconds for what containerd does by itself, in an emulated L1.
PATIENCE = 60


def gone(containerd: Containerd) -> bool:
    return not list((containerd.state / "io.containerd.runtime.v2.task/default").glob("*"))


def test_in_the_foreground(containers: KataContainers) -> None:
    done = containers.run("one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    eventually(lambda: gone(containers.containerd), "the task's directory is left", seconds=PATIENCE)
    trace = containers.trace("one")
    assert trace.services == ["kata", "kata-agent"]
    (started,) = (span for span in trace.spans if span.name == "start_container")
    assert ancestors(started)[-2:] == ["Start", "rootSpan"]


def test_detached_until_its_vm_is_killed(containers: KataContainers) -> None:
    """Start and exec; a VM that dies is a failed container, and nothing is left of it."""
    containers.detached("box", "sleep", "1000")
    pid, state = task(containers.containerd, "box") or (0, "")
    assert (state, vm_pids("box")) == ("RUNNING", [pid])
    command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    assert "-accel kvm" in command
    assert "vhost-vsock-pci" in command
    done = containers.exec("box", "e1", "sh", "-c", "echo inside; exit 3")
    assert (done.returncode, done.stdout) == (3, b"inside\n")
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: (task(containers.containerd, "box") or (0, ""))[1] == "STOPPED", "nobody noticed", seconds=PATIENCE
    )
    assert b"exit code 255" in containers.tasks("delete", "box", check=False).stderr
    eventually(lambda: gone(containers.containerd), "the task's directory is left", seconds=PATIENCE)
    assert vm_pids("box") == []
    (directory,) = (containers.artifacts / "traces").iterdir()
    trace = load_store(Store(directory))
    assert trace is not None
    assert trace.root.name == "rootSpan"
