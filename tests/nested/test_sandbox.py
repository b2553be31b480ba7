"""`kata-runtime run` as it is meant to run: under KVM, with the kernel's vsock."""

import asyncio
import errno
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from kata_common.contract import Port
from kata_runtime.guest.transport import KernelTransport
from kata_runtime.hypervisor.vsock.kernel import reserve_cid, set_guest_cid
from kata_traces.read.trace import Trace, load_store
from kata_traces.store.store import Store
from support.running import Running

pytestmark = pytest.mark.slow

MILLISECOND = 1_000_000


def flags(cpuinfo: str, *wanted: str) -> list[str]:
    line = next(line for line in cpuinfo.splitlines() if line.startswith("flags"))
    return [flag for flag in wanted if flag in line.split()]


def open_files(pid: int) -> set[str]:
    """Devices by their usual names: QEMU's root has none of them any more."""
    entries = Path(f"/proc/{pid}/fd").iterdir()
    return {f"/dev/{entry.readlink().name}" if entry.is_char_device() else str(entry.readlink()) for entry in entries}


def test_qemu_runs_on_kvm_and_vhost_vsock(sandbox: Running, proof: Path) -> None:
    arguments = sandbox.qemu_arguments()
    words = " ".join(arguments)
    files = open_files(sandbox.helper("qemu-system-x86_64"))
    assert "-accel kvm -cpu host," in words
    assert f"-device vhost-vsock-pci,guest-cid={sandbox.cid},vhostfd=" in words
    assert {"/dev/kvm", "/dev/vhost-vsock", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"} <= files
    host, guest = Path("/proc/cpuinfo").read_text(), sandbox("cat /proc/cpuinfo")
    clocks = sandbox("cat /sys/devices/system/clocksource/clocksource0/available_clocksource").split()
    assert "kvm-clock" in clocks  # which only KVM offers
    assert flags(guest, "hypervisor")
    assert flags(host, "svm", "vmx")
    with proof.open("a") as report:
        print(f"host's CPU flags: {' '.join(flags(host, 'svm', 'vmx', 'npt', 'ept', 'hypervisor'))}", file=report)
        print(f"QEMU: {words}", file=report)
        print(
            f"QEMU's files: {' '.join(sorted(name for name in files if 'kvm' in name or 'vsock' in name))}", file=report
        )
        print(f"guest: {sandbox('uname -srv').strip()}; clock sources: {' '.join(clocks)}", file=report)
        print(f"guest's CPU flags: {' '.join(flags(guest, 'hypervisor', 'constant_tsc', 'nonstop_tsc'))}", file=report)


def test_the_guest_is_reached_by_af_vsock(sandbox: Running, tmp_path: Path) -> None:
    async def talk() -> bytes:
        stream, port = await KernelTransport(sandbox.cid, tmp_path / "unused").connect(Port.CLOCK)
        with stream:
            assert stream.family == socket.AF_VSOCK
            assert port == stream.getsockname()[1] > 0
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, b"question")
            return await loop.sock_recv(stream, 24)

    assert asyncio.run(talk()).startswith(b"question")


def test_a_guest_that_needs_time_to_answer(sandbox: Running, tmp_path: Path) -> None:
    """The kernel's own patience with a connection is two seconds, ours is not."""
    transport = KernelTransport(sandbox.cid, tmp_path / "unused")

    async def connect() -> None:
        sandbox.kill("qemu-system-x86_64", signal.SIGSTOP)
        connecting = asyncio.create_task(transport.connect(Port.CLOCK))
        done, _ = await asyncio.wait({connecting}, timeout=4)
        sandbox.kill("qemu-system-x86_64", signal.SIGCONT)
        assert not done
        stream, _ = await connecting
        stream.close()

    asyncio.run(connect())


@pytest.mark.parametrize(("port", "other", "why"), [(4000, 0, "reset"), (Port.CLOCK, 1, "No such device")])
def test_nobody_there(sandbox: Running, tmp_path: Path, port: int, other: int, why: str) -> None:
    """A port without a listener, and a context id that no guest has."""
    cid = sandbox.cid + other
    transport = KernelTransport(cid, tmp_path / "unused")
    with pytest.raises(ConnectionRefusedError, match=rf"port {port} can't be reached \(CID {cid}\): .*{why}"):
        asyncio.run(transport.connect(port))


def test_the_kernel_keeps_context_ids_apart(sandbox: Running) -> None:
    cid, fd = reserve_cid()
    try:
        assert cid != sandbox.cid
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            set_guest_cid(fd, sandbox.cid)
    finally:
        os.close(fd)
    again = os.open("/dev/vhost-vsock", os.O_RDWR)
    try:
        set_guest_cid(again, cid)  # free again
    finally:
        os.close(again)


def test_bytes_through_the_streams(sandbox: Running) -> None:
    assert len(sandbox("head -c 4194304 /dev/zero | tr '\\0' x; echo")) == 4194305


def test_it_ends_with_the_workloads_status(sandbox: Running, proof: Path) -> None:
    qemu = sandbox.helper("qemu-system-x86_64")
    status, errors = sandbox.finish(7)
    assert (status, errors) == (7, "")
    assert not Path(f"/proc/{qemu}").exists()
    assert not Path("/run/kata/shared").exists()
    answer = re.search(r'"execute": "query-kvm".*\n.*<-- (.*)', sandbox.log("qmp"))
    assert answer is not None, sandbox.log("qmp")
    assert answer[1] == '{"return": {"enabled": true, "present": true}}'
    with proof.open("a") as report:
        print(f"QMP query-kvm: {answer[1]}", file=report)


def test_its_trace(sandbox: Running, proof: Path) -> None:
    """Runtime and agent spans nest, in host time, by kvm-clock's measured offset."""
    trace = finished(sandbox)
    assert trace.root.name == "rootSpan"
    assert trace.services == ["kata", "kata-agent"]
    spans = {(span.service, span.name): span for span in trace.spans}
    for name, above in {
        "create_sandbox": ["AgentService.CreateSandbox", "StartVM", "startVM", "createSandboxFromConfig", "create"],
        "start_container": ["AgentService.StartContainer", "startContainer", "Start"],
    }.items():
        names, span = [], spans["kata-agent", name]
        while span.parent:
            span = span.parent
            names.append(span.name)
        assert names == [*above, "rootSpan"]
    clock = spans["kata", "clockSync"].attributes
    # Closer than the clock is known nobody can say; in an emulated L1 that may be some milliseconds.
    known = MILLISECOND + int(clock["bound_ns"])
    outside = [
        span.name
        for span in trace.spans
        if span.parent and (span.start < span.parent.start - known or span.end > span.parent.end + known)
    ]
    assert abs(int(clock["wall_error_ns"])) < 2_000_000_000
    with proof.open("a") as report:
        told = f"offset {int(clock['offset_ns'])} ns, known to ± {int(clock['bound_ns']) / 1e6:.3f} ms"
        print(f"trace: {len(trace.spans)} spans, {len(outside)} outside their parents; guest clock {told}", file=report)
    assert outside == []


def finished(sandbox: Running) -> Trace:
    """The trace of the sandbox, whole; ends it if it still runs."""
    if sandbox.process.poll() is None:
        sandbox.finish()
    trace = load_store(Store(sandbox.kata.trace_dir / sandbox.name))
    assert trace is not None
    assert trace.meta.lost == {}
    assert trace.orphans == []
    assert trace.negative() == []
    return trace
