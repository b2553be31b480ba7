"""What the host tells of a boot: helpers, QEMU, firmware, and where the kernel's clock begins."""

from pathlib import Path

import pytest

from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.guest.clock import Reading
from kata_runtime.hypervisor.boot import Boot, BootStage
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.sandbox.trace import SandboxTrace
from kata_telemetry.span import NO_SPAN, Site, Tracer, use
from kata_traces.read.analysis import critical_path
from kata_traces.read.trace import load_store
from kata_traces.store.store import Store

MS = 1_000_000


def test_a_helper_starts_until_it_says_that_it_serves() -> None:
    ended: list[str] = []
    tracer = Tracer("kata", lambda span: ended.append(span.name))
    start = HelperStart(tracer.start("startVirtiofsd"), "Waiting for")
    start.on_line("something else")
    assert (ended, start.ready_ns) == ([], 0)
    start.on_line("virtiofsd: Waiting for vhost-user socket connection...")
    first = start.ready_ns
    start.on_line("Waiting for the next one")
    start.over()
    assert ended == ["startVirtiofsd"]
    assert start.ready_ns == first > 0


def test_a_helper_that_says_nothing_is_over_when_qemu_runs() -> None:
    ended: list[str] = []
    start = HelperStart(Tracer("kata", lambda span: ended.append(span.name)).start("startVirtiofsd"), "Waiting for")
    start.over()
    assert (ended, start.ready_ns) == (["startVirtiofsd"], 0)
    HelperStart(NO_SPAN, "x").over()


@pytest.mark.parametrize("last_line", [30, 60])
def test_the_firmware_ends_where_the_guests_clock_begins(tmp_path: Path, last_line: int) -> None:
    """After its last line it copies the kernel, and on a busy host that line is read late. Either way nothing beside it
    must seem to be what was waited for.
    """
    runtime = RuntimeConfig(enable_tracing=True, trace_dir=str(tmp_path))
    trace = SandboxTrace.open(Config(QemuConfig(), AgentConfig(enable_tracing=True), runtime), "s1", command="x")
    site = Site(package="test", subsystem="unit")
    begin = trace.clock.now()
    boot = Boot("QEMU")
    boot.marks = {
        BootStage.MACHINE: begin + 10 * MS,
        BootStage.FIRMWARE: begin + 20 * MS,
        BootStage.KERNEL: begin + last_line * MS,
        BootStage.READY: begin + 100 * MS,
    }
    kernel = begin + 50 * MS
    with use(trace.root):
        trace.record_boot(boot, Reading(trace.clock.to_host(kernel), 0))
        site.record("importBesideIt", begin + 15 * MS, begin + 48 * MS)
        site.record("boot.kernel", kernel, begin + 100 * MS)
        trace.root.finish(at=begin + 100 * MS)
    trace.close("exit 0")
    loaded = load_store(Store(tmp_path / "s1"))
    assert loaded is not None
    names = [segment.span.name for segment in critical_path(loaded.root) if segment.span is not loaded.root]
    assert names == ["boot.qemu", "boot.firmware", "boot.kernel"]
