"""The guest's clock: the rate that its kernel takes it to have, and a step of it while the sandbox lives."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kata_runtime.hypervisor.qemu.accelerator import kvm_usability
from kata_runtime.hypervisor.qemu.tsc import TscMeter, tsc_reader
from kata_runtime.image import DEFAULT_OUTPUT, Artifacts
from kata_runtime.sandbox.timekeeper import INTERVAL
from kata_traces.read.trace import Trace, load_store
from kata_traces.store.store import Store
from support.containerd import eventually
from support.kata import Kata
from support.running import Running

pytestmark = pytest.mark.vm

NAME = "clock"
SECOND = 1_000_000_000


@pytest.mark.skipif(kvm_usability().usable, reason="KVM tells the guest its counter's rate itself")
def test_an_emulated_guest_measures_no_rate(kata: Kata) -> None:
    """Left to itself its kernel would measure against a timer that comes late where the host is busy."""
    meter = TscMeter(tsc_reader())
    assert kata.configure("hypervisor.qemu", kernel_params="loglevel=7").run("true").returncode == 0
    (console,) = kata.logs_dir.glob("*/console.log")
    said = console.read_text(errors="replace")
    *_, (found, _) = re.findall(r"tsc: Detected ([\d.]+) MHz (processor|TSC)", said)
    assert float(found) * 1000 == pytest.approx(meter.khz(), rel=1e-3)
    assert re.findall(r"tsc: .*(?:PIT calibration|PMTIMER|against PIT).*", said) == []


def the_trace(kata: Kata) -> Trace:
    trace = load_store(Store(kata.trace_dir / NAME))
    assert trace is not None
    return trace


@pytest.mark.slow
@pytest.mark.parametrize("since", ["the start", "trace on"])
def test_a_clock_that_was_set_wrong_is_put_right(kata: Kata, tmp_path: Path, since: str) -> None:
    """A container that may do that lets CLOCK_MONOTONIC run a tenth too fast for a while."""
    image = Path(os.environ.get("KATA_IMAGE_DIR", DEFAULT_OUTPUT))
    shutil.copytree(Artifacts.at(image).default_rootfs, tmp_path / "rootfs", symlinks=True)
    capabilities = {key: ["CAP_SYS_TIME"] for key in ("bounding", "effective", "permitted")}
    process = {"args": ["sh"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    config = {
        "ociVersion": "1.0.2",
        "process": process | {"capabilities": capabilities},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    kata.tracing(runtime=since == "the start", agent=since == "the start")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    log = kata.directory / "runtime.log"
    options = ("--log", str(log), "run", "-i", "--name", NAME, "--bundle", str(tmp_path))
    with kata.start(*options, **pipes) as process_:
        sandbox = Running(kata, NAME, process_)
        try:
            sandbox("true")
            if since == "trace on":
                assert kata("trace", "on", NAME).returncode == 0
            begin = time.monotonic_ns()
            assert "tick" in sandbox("busybox adjtimex -t 11000 | grep 'tick.*11000'")
            sandbox("busybox sleep 5; busybox adjtimex -t 10000")
            most = (time.monotonic_ns() - begin) // 10
            eventually(
                lambda: "the guest's clock was off by 0." in log.read_text(), "nobody noticed", seconds=2 * INTERVAL
            )
            assert sandbox.finish()[0] == 0
        finally:
            process_.terminate()
    trace = the_trace(kata)
    # The guest's clock is ahead, so what takes it back to the host's is less than before.
    (event,) = (event for event in trace.root.events if event.name == "clockStepped")
    for told in (trace.root.attributes["clock_drift_ns"], event.attributes["offset_change_ns"]):
        assert -most - SECOND // 20 < int(told) < -SECOND // 4
    bound = int(trace.root.attributes["clock_bound_ns"])
    assert trace.meta.lost == {}
    later = {span.name: span for span in trace.spans if span.name in ("destroy_sandbox", "remove_container")}
    assert later.keys() == {"destroy_sandbox", "remove_container"}
    for span in later.values():
        assert span.parent is not None
        assert span.start >= span.parent.start - bound - SECOND // 1000
        assert span.end <= span.parent.end + bound + SECOND // 1000
