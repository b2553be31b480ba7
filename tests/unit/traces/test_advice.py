"""Why it was slow, and what would change it."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.sandbox.trace.conditions import Conditions
from kata_telemetry.conventions import (
    ACCELERATOR,
    CPU_PRESSURE,
    HOST_CPUS,
    IO_PRESSURE,
    LOAD,
    MEMORY_PRESSURE,
    STEAL,
)
from kata_traces.commands import main as command
from kata_traces.read.advice import advice
from kata_traces.read.explain import explain
from kata_traces.read.trace import Trace
from support.collectors import http_collector
from support.odd_traces import trace_of
from support.traces import Maker, container_start, write_store


def started(**attributes: Any) -> Trace:
    make = container_start()
    for key, value in attributes.items():
        kind = "stringValue" if isinstance(value, str) else "doubleValue"
        make.spans[0]["span"]["attributes"].append({"key": key, "value": {kind: value}})
    return trace_of(make, outcome="exit 0")


def test_a_quiet_start_by_kvm_needs_no_advice() -> None:
    quiet = {ACCELERATOR: "kvm", LOAD: 0.4, HOST_CPUS: 4, IO_PRESSURE: 0.01, CPU_PRESSURE: 0.05, STEAL: 0.0}
    assert list(advice(started(**quiet))) == []


def test_emulation_is_said_with_its_price() -> None:
    [line] = advice(started(**{ACCELERATOR: "tcg"}))
    assert line.startswith("QEMU emulates the guest's processor")
    assert "most of 2.61 s in the guest (86.7 %) is its price; KVM would change that" in line


def test_a_guest_that_hardly_ran_cost_nothing() -> None:
    """QEMU refused to start: that it would have emulated is not the point."""
    make = Maker()
    root = make.add("rootSpan", 0, 900, error="QEMU did not start")
    make.add("startVsockBackend", 0, 500, root)
    make.add("boot.firmware", 810, 890, root)
    make.spans[0]["span"]["attributes"].append({"key": ACCELERATOR, "value": {"stringValue": "tcg"}})
    assert list(advice(trace_of(make, outcome="error"))) == []


def test_why_kvm_is_not_used_is_said() -> None:
    make = container_start()
    make.add("chooseAccelerator", 63, 64, f"{1:016x}", accelerator="tcg", reason="KVM can't be used (no vmx)")
    [line] = advice(trace_of(make))
    assert line.endswith("KVM can't be used (no vmx).")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({IO_PRESSURE: 0.4}, "The host's disks were busy: tasks waited for them 40% of the start"),
        ({MEMORY_PRESSURE: 0.1}, "The host was short of memory: tasks waited for it 10% of the start"),
        ({CPU_PRESSURE: 0.5, LOAD: 7, HOST_CPUS: 2}, "waited for a processor 50% of the start, load 7 on 2 processors"),
        ({LOAD: 7, HOST_CPUS: 2}, "The host was busy: load 7 on 2 processors"),
        ({STEAL: 0.2}, "20% of its processor time was taken away"),
    ],
)
def test_what_of_the_host_cost_time(attributes: dict[str, Any], said: str) -> None:
    [line] = advice(started(**attributes))
    assert said in line
    assert line.endswith("would change that.")


def test_explain_says_first_what_dominates_and_then_what_would_change_it() -> None:
    lines = explain(started(**{ACCELERATOR: "tcg", IO_PRESSURE: 0.4}))
    order = [
        next(i for i, line in enumerate(lines) if part in line) for part in ("Most of", "emulates", "disks were busy")
    ]
    assert order == sorted(order)


def test_a_collector_out_of_reach_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    with http_collector("busy") as collector:
        where = ["--trace-dir", str(tmp_path)]
        push = ["trace", "push", "--endpoint", collector.endpoint, "--protocol", "http/protobuf", "--timeout", "1"]
        options = parser.parse_args([*push, *where])
        assert options.run(options) == 1
    options = parser.parse_args(["trace", "explain", *where])
    options.run(options)
    assert "does not have all of it (HTTP 503" in capsys.readouterr().out


# --- the host's samples


def proc(directory: Path, *, stalled: int, steal: int, total: int, load: str) -> Path:
    (directory / "pressure").mkdir(parents=True)
    for name in ("cpu", "io", "memory"):
        text = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled}\nfull avg10=0 avg60=0 avg300=0 total=1\n"
        (directory / "pressure" / name).write_text(text)
    (directory / "stat").write_text(f"cpu {total - steal} 0 0 0 0 0 0 {steal} 9 9\ncpu0 1 2 3\n")
    (directory / "loadavg").write_text(f"{load} 1.00 1.00 2/300 4711\n")
    return directory


def test_two_samples_make_shares(tmp_path: Path) -> None:
    before = Conditions.sample(proc(tmp_path / "a", stalled=1_000_000, steal=100, total=1000, load="1.50"))
    after = Conditions.sample(proc(tmp_path / "b", stalled=1_500_000, steal=150, total=1200, load="9.00"))
    later = Conditions(before.at + 2.0, after.load, after.stalled, after.steal, after.all_cpu)
    found = before.until(later)
    assert (found[LOAD], found[STEAL]) == (1.5, 0.25)
    assert [found[name] for name in (CPU_PRESSURE, IO_PRESSURE, MEMORY_PRESSURE)] == [0.25] * 3
    assert found[HOST_CPUS] >= 1


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    nothing = Conditions.sample(tmp_path)
    assert set(nothing.until(nothing)) == {LOAD, HOST_CPUS}


def test_this_machine_tells_something() -> None:
    assert Conditions.sample().all_cpu > 0
