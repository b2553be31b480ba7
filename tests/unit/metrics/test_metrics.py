"""Figures out of /proc, and how long calls take."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.metrics import proc
from kata_runtime.metrics.durations import Durations
from kata_runtime.metrics.families import SandboxCollector

STATUS = (
    "Name:\tq\nVmRSS:\t  1234 kB\nHugetlbPages:\t 0 kB\nThreads:\t7\nvoluntary_ctxt_switches:\t9\nCpus_allowed:\t3\n"
)
NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    100       2    0    0    0     0          0         0      300       4    0    0    0     0       0          5
"""  # noqa: E501


def test_texts_of_proc() -> None:
    assert proc.status(STATUS) == {"vmrss": 1234, "hugetlbpages": 0, "threads": 7, "voluntary_ctxt_switches": 9}
    fields = " ".join(map(str, range(3, 53)))
    found = proc.stat(f"7 (a) b) {fields}")
    assert found == {"utime": 14, "stime": 15, "cutime": 16, "cstime": 17, "starttime": 22}
    assert proc.io("rchar: 5\ncancelled_write_bytes: 6\n") == {"rchar": 5, "cancelledwritebytes": 6}
    network = proc.interfaces(NET)
    assert (network["lo", "recv_bytes"], network["lo", "sent_packets"], network["lo", "sent_compressed"]) == (100, 4, 5)
    assert len(network) == 16


@given(st.text(max_size=200))
def test_no_text_breaks_them(text: str) -> None:
    for read in (proc.status, proc.stat, proc.io, proc.interfaces):
        assert isinstance(read(text), dict)


def test_our_own_process() -> None:
    own = proc.read(os.getpid())
    assert own.status["vmrss"] > 1000
    assert own.threads >= 1
    assert own.descriptors > 2
    assert own.max_descriptors >= own.descriptors
    assert Path("/proc/self").stat().st_ctime - 86400 < own.started
    assert proc.read(2**22 + 1) == proc.Process(2**22 + 1)


def test_durations_are_cumulative() -> None:
    durations = Durations()
    for milliseconds in (0.5, 1.0, 3.0, 600.0):
        durations.observe("create", milliseconds)
    samples = {(s.name, s.labels.get("le")): s.value for s in durations.family("x", "y").samples}
    assert samples["x_bucket", "1.0"] == 2
    assert samples["x_bucket", "4.0"] == 3
    assert samples["x_bucket", "512.0"] == 3
    assert samples["x_bucket", "+Inf"] == samples["x_count", None] == 4
    assert samples["x_sum", None] == 604.5


def test_actions_are_bounded() -> None:
    durations = Durations()
    for number in range(1000):
        durations.observe(str(number), 1)
    assert len({s.labels["action"] for s in durations.family("x", "y").samples}) == 100


def test_a_call_that_fails_counts() -> None:
    durations = Durations()
    try:
        with durations.timed("start"):
            raise ValueError
    except ValueError:
        pass
    assert durations.family("x", "y").samples


def test_katas_names() -> None:
    names = {metric.name for metric in SandboxCollector(os.getpid()).collect()}
    for who in ("kata_shim", "kata_hypervisor"):
        assert {
            f"{who}_{name}" for name in ("proc_status", "proc_stat", "io_stat", "netdev", "threads", "fds")
        } <= names
    assert "kata_shim_rpc_durations_histogram_milliseconds" in names
    assert "kata_shim_agent_rpc_durations_histogram_milliseconds" in names
    assert "kata_shim_process_resident_memory_bytes" in names
    assert not any(metric.name.startswith("kata_hypervisor") for metric in SandboxCollector(0).collect())
