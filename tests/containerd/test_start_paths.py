"""Containers and pods of containerd that are clones of a template, or of the pool."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_traces.read.trace import Trace, load_store
from kata_traces.store.store import Store
from support.containerd import shim_pid, task
from support.cri.client import Cri
from support.kata import Kata
from support.kata_containers import KataContainers
from support.pool import clear, is_ready, members, wait_for, wait_for_member

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

_TRACED = '[runtime]\ntrace_dir = "{}/traces"\nenable_tracing = true\n[agent.kata]\nenable_tracing = true\n'


def start_path(trace: Trace) -> str:
    (root,) = (span for span in trace.spans if span.name == "rootSpan")
    return str(root.attributes["kata.start.path"])


@contextmanager
def serving(artifacts: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A pool of one for the block, by the configuration that containerd's shims read."""
    argv = [str(Kata.program), "--config", str(artifacts / "configuration.toml"), "factory", "serve"]
    # Unix sockets have short names, pytest's directories long ones.
    with tempfile.TemporaryDirectory(prefix="kp-", dir="/tmp") as directory:
        text = f'[factory]\nvm_cache_number = 1\nvm_cache_endpoint = "{directory}/pool.sock"\n'
        (artifacts / "config.d/pool.toml").write_text(text)
        with subprocess.Popen(argv) as server:
            try:
                wait_for(lambda: server.poll() is not None or is_ready())
                yield server
            finally:
                server.send_signal(signal.SIGTERM)
                assert server.wait(30) == 0
                clear()


def test_a_container_is_a_clone(kata: KataContainers) -> None:
    kata.tracing()
    done = kata.run("box", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    assert start_path(kata.trace("box")) == "template"
    kata.nothing_remains()


def test_a_container_by_a_member_of_the_pool(kata: KataContainers) -> None:
    """Its shim is the member, which `start` has found; it outlives the pool."""
    kata.tracing()
    with serving(kata.artifacts) as server:
        member = wait_for_member()
        kata.detached("box", "sleep", "1000", options=("--cgroup", "/pooled"))
        assert shim_pid(kata.containerd, "box") == member
        assert Path(f"/proc/{member}/comm").read_text() == "containerd-shim\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        wait_for(lambda: members() == [member])
        done = kata.exec("box", "e1", "sh", "-c", "echo inside; exit 3")
        assert (done.returncode, done.stdout) == (3, b"inside\n")
        # The pod's limits hold for the machine, which was there before it.
        machine, _ = task(kata.containerd, "box") or (0, "")
        inside = Path(f"/proc/{machine}/cgroup").read_text()
        kata.tasks("delete", "--force", "box")
        kata.containerd.ctr("containers", "delete", "box")
        wait_for(lambda: not members())
    assert "/kata_pooled\n" in inside
    assert start_path(kata.trace("box")) == "pool"
    kata.nothing_remains()


def test_a_shim_whose_sandbox_is_another_than_the_pools(kata: KataContainers) -> None:
    kata.tracing()
    with serving(kata.artifacts):
        wait_for_member()
        (kata.artifacts / "config.d/other.toml").write_text("[hypervisor.qemu]\ndefault_memory = 640\n")
        done = kata.run("box", "sh", "-c", "cat /proc/meminfo | head -n 1")
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[1]) < 640 << 10
    assert start_path(kata.trace("box")) == "cold"
    kata.nothing_remains()


@pytest.mark.parametrize("path", ["template", "pool"])
def test_a_pod_is_a_clone(cri: Cri, artifacts: Path, path: str) -> None:
    """Its network is the pod's, its containers come later."""
    (artifacts / "configuration.toml").write_text(_TRACED.format(artifacts))

    def use() -> None:
        pod = cri.pod("web")
        first = pod.container("first", "/bin/sh", "-c", "echo out; sleep 1000")
        second = pod.container("second", "/bin/sh", "-c", "sleep 1000")
        assert cri.exec(first, "hostname") == (0, b"web\n", b"")
        assert os.fsencode(pod.ip) in cri.exec(second, "ip", "address")[1]
        with cri.network.listening("10.133.7.1") as (port, heard):
            assert cri.exec(first, "sh", "-c", f"echo from the pod | nc 10.133.7.1 {port}")[0] == 0
            assert heard.result(30) == b"from the pod\n"
        pod.stop()
        pod.remove()

    if path == "pool":
        with serving(artifacts):
            use()
    else:
        use()
    (directory,) = (entry for entry in (artifacts / "traces").iterdir() if not entry.name.startswith("pool-"))
    trace = load_store(Store(directory))
    assert trace is not None
    assert start_path(trace) == path
    assert (trace.orphans, trace.negative()) == ([], [])
