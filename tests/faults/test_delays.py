"""Slow stages: the trace blames each for the time that it was slowed by, and its critical path runs through it.

Every wait says when it began and ended (`support.holds`), so each test asks the trace about that very time. Nothing is
compared with another run: on a machine that others use too, two runs differ by more than what is looked for here.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kata_runtime.image import DEFAULT_OUTPUT
from kata_traces.read.analysis import critical_path
from kata_traces.read.trace import Trace, load_store
from kata_traces.store.store import Store
from support.collectors import grpc_collector
from support.holds import Hold, Holds, virtiofsd
from support.kata import Kata
from support.netns import made

pytestmark = [pytest.mark.vm, pytest.mark.cold]

MILLISECOND = 1_000_000


@pytest.fixture
def holds() -> Iterator[Holds]:
    """Wrappers where QEMU's user can read them."""
    directory = Path(tempfile.mkdtemp(prefix="kata-holds-"))
    directory.chmod(0o755)
    yield Holds(directory)
    shutil.rmtree(directory)


def the_trace(kata: Kata) -> Trace:
    (directory,) = (path for path in kata.trace_dir.iterdir() if path.is_dir())
    trace = load_store(Store(directory))
    assert trace is not None
    assert trace.orphans == []
    return trace


def happened(kata: Kata, holds: Holds, trace: Trace) -> Mapping[str, Hold]:
    """The waits of the run, by stage."""
    (console,) = kata.logs_dir.glob("*/console.log")
    (clock,) = (span for span in trace.spans if span.name == "clockSync")
    return holds.all(console, int(clock.attributes["offset_ns"]))


def blamed(trace: Trace, hold: Hold) -> dict[str, int]:
    """What the trace's end waited for during a wait: name of the span -> ns, of its own and not of its children."""
    shares: dict[str, int] = {}
    for span, begin, end in critical_path(trace.root):
        if (took := min(end, hold.end) - max(begin, hold.begin)) > 0:
            shares[span.name] = shares.get(span.name, 0) + took
    return shares


def wrong(trace: Trace, hold: Hold, name: str, seconds: float) -> list[str]:
    """What is wrong with how the trace tells of a wait of `seconds`: within 10 % or 20 ms it is all `name`'s."""
    wanted = int(seconds * 1e9)
    tolerance = max(wanted // 10, 20 * MILLISECOND)
    shares = blamed(trace, hold)
    found = []
    if hold.end - hold.begin < wanted:
        found.append(f"{hold.stage}: it waited {(hold.end - hold.begin) / 1e9:.3f} s only")
    # A wait may be longer than asked for, where the machine is busy: then so is the blame.
    if shares.get(name, 0) < hold.end - hold.begin - tolerance:
        told = ", ".join(f"{name} {took / 1e9:.3f} s" for name, took in shares.items())
        found.append(f"{hold.stage}: {(hold.end - hold.begin) / 1e9:.3f} s should be {name}'s, but are: {told}")
    return found


def test_a_pods_network_that_is_set_up_slowly(kata: Kata, holds: Holds) -> None:
    """tc on the host, then the interface in the guest."""
    kata.prologue = holds.slow_tc("tc", 0.6)
    kata.tracing(runtime=True, agent=True)
    kata.configure("hypervisor.qemu", initrd=holds.initrd(image(), interface=0.9))
    with made(2) as (pod, host):
        pod.ip(f"link add eth0 type veth peer name veth0 netns {host.name}")
        host.ip("link set veth0 up")
        pod.ip("addr add 10.7.0.2/24 dev eth0")
        pod.ip("link set eth0 up")
        done = kata.run("cat", "/proc/net/dev", options=["--netns", str(pod.path)])
        assert done.returncode == 0, done.stderr
        assert b"eth0:" in done.stdout
        assert pod.traces() == []
    trace = the_trace(kata)
    found = happened(kata, holds, trace)
    assert found.keys() == {"tc", "interface"}
    assert wrong(trace, found["tc"], "setupTCFiltering", 0.6) == []
    assert wrong(trace, found["interface"], "setUpInterface", 0.9) == []


def test_a_collector_that_answers_late(kata: Kata, holds: Holds) -> None:
    """Its time is nobody's in the trace, and nobody's end waits for it: it answers when the run is over."""
    with grpc_collector("late") as collected:
        kata.tracing(runtime=True, agent=True)
        kata.configure("runtime", otlp_endpoint=collected.endpoint, otlp_timeout=60.0)
        command = ("run", "-i", "--", "sh", "-c", "echo ready; cat")
        with kata.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
            assert run.stdin is not None
            assert run.stdout is not None
            assert run.stdout.readline() == b"ready\n"
            assert collected.wait(lambda c: bool(c.requests), 60)
            begin = time.time_ns()
            time.sleep(0.8)
            run.stdin.close()
            holds.add("collector", begin, time.time_ns())
            assert run.stdout.read() == b""
            assert run.wait(60) == 0
            over = time.time_ns()
        collected.released.set()
        trace = the_trace(kata)
        # What it was late with comes, once.
        assert collected.wait(lambda c: len(c.names) >= len(trace.spans), 60)
        assert sorted(collected.names) == sorted(span.name for span in trace.spans)
    assert trace.root.end <= over
    # Meanwhile the sandbox waited for the test, and for nothing else.
    assert wrong(trace, happened(kata, holds, trace)["collector"], "stdio.stdin", 0.8) == []


def image() -> Path:
    return Path(os.environ.get("KATA_IMAGE_DIR", DEFAULT_OUTPUT))


def test_virtiofsd_that_starts_slowly(kata: Kata, holds: Holds) -> None:
    kata.configure("hypervisor.qemu", virtio_fs_daemon=holds.wrap("virtiofsd", virtiofsd(), 1.0))
    assert kata.tracing(runtime=True, agent=True).run("true").returncode == 0
    trace = the_trace(kata)
    assert wrong(trace, happened(kata, holds, trace)["virtiofsd"], "startVirtiofsd", 1.0) == []


@pytest.mark.skipif(Path("/dev/vhost-vsock").exists(), reason="the kernel is the backend here")
def test_a_vsock_backend_that_starts_slowly(kata: Kata, holds: Holds) -> None:
    kata.prologue = holds.late_helpers("backend", 1.0)
    assert kata.tracing(runtime=True, agent=True).run("true").returncode == 0
    trace = the_trace(kata)
    assert wrong(trace, happened(kata, holds, trace)["backend"], "startVsockBackend", 1.0) == []


# Stage -> the span to blame, and seconds. All different, so that one can't pass for another.
SLOWED = {
    "start": ("startRuntime", 0.5),
    "qemu": ("boot.qemu", 0.6),
    "kernel": ("boot.kernel", 1.0),
    "initramfs": ("boot.initramfs.switch_root", 0.7),
    "agent": ("boot.agent.imports", 0.8),
    "mount": ("mount", 0.55),
    "create": ("crun create", 0.65),
    "stdin": ("stdio.stdin", 0.75),
    "delete": ("crun delete", 0.45),
    "kill": ("stop virtiofsd", 0.85),
}


def test_ten_slow_stages(kata: Kata, holds: Holds) -> None:
    seconds = {stage: seconds for stage, (_, seconds) in SLOWED.items()}
    in_guest = {stage: seconds[stage] for stage in ("initramfs", "agent", "mount", "create", "delete")}
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu
    kata.tracing(runtime=True, agent=True).configure(
        "hypervisor.qemu",
        # Its helpers start beside it; two seconds later they have, and what is waited for is QEMU alone.
        path=holds.wrap("qemu", qemu, seconds["qemu"], after=2),
        virtio_fs_daemon=holds.linger("kill", virtiofsd(), seconds["kill"]),
        initrd=holds.initrd(image(), **in_guest),
        kernel_params="resumedelay=1 resume=/dev/none",
    )
    kata.prologue = holds.late("start", seconds["start"])
    command = ("run", "-i", "--", "sh", "-c", "echo ready; cat")
    with kata.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        begin = time.time_ns()
        time.sleep(seconds["stdin"])
        run.stdin.write(b"late\n")
        run.stdin.close()
        holds.add("stdin", begin, time.time_ns())
        assert run.stdout.read() == b"late\n"
        assert run.wait(60) == 0
    trace = the_trace(kata)
    found = happened(kata, holds, trace)
    assert found.keys() == SLOWED.keys()
    assert [text for stage, (name, long) in SLOWED.items() for text in wrong(trace, found[stage], name, long)] == []
