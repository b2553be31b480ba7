"""The rate of the host's time stamp counter."""

import itertools
import platform
import time
from pathlib import Path

import pytest

from kata_runtime.hypervisor.qemu.tsc import TscMeter, tsc_reader

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="an instruction of x86")


class Host:
    """A counter and a clock; every reading of the clock takes 100 ns, and some take long."""

    def __init__(self, khz: int) -> None:
        self.khz = khz
        self.ns = 10**12
        self.steps = itertools.cycle([100, 100, 100, 5_000_000, 100])

    def now(self) -> int:
        self.ns += next(self.steps)
        return self.ns

    def read(self) -> int:
        return 7 + self.ns * self.khz // 1_000_000


@pytest.mark.parametrize("khz", [1_000_000, 2_445_426, 3_800_000])
def test_a_rate(khz: int) -> None:
    """A thread that is preempted in the middle of a reading spoils nothing."""
    host = Host(khz)
    meter = TscMeter(host.read, host.now)
    host.ns += 20_000_000
    assert meter.khz() == pytest.approx(khz, rel=1e-4)


def test_what_is_not_known() -> None:
    assert TscMeter(None).khz() == 0
    host = Host(1_000_000)
    host.steps = itertools.cycle([100])
    assert TscMeter(host.read, host.now).khz() == 0  # no time has passed
    still = TscMeter(lambda: 5)
    still._first = (5, 0)
    assert still.khz() == 0


def test_a_counter_without_a_constant_rate(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu tsc nonstop_tsc\n")
    assert tsc_reader(tmp_path / "cpuinfo") is None


@X86
def test_this_hosts_counter(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu tsc constant_tsc\n")
    read = tsc_reader(tmp_path / "cpuinfo")
    assert read is not None
    meters = []
    for _ in range(2):
        meter = TscMeter(read)
        deadline = time.monotonic_ns() + 5_000_000
        while time.monotonic_ns() < deadline:
            pass
        meters.append(meter.khz())
    assert read() < read()
    assert meters[0] == pytest.approx(meters[1], rel=1e-2)
    assert 100_000 < meters[0] < 10_000_000
