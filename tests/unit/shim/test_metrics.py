import time

import pytest

from kata_protos.agent_pb2 import NetworkStats
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_runtime.shim.metrics import UNLIMITED, add_metrics, to_metrics


def test_every_number_has_its_place() -> None:
    metrics = to_metrics(
        {
            "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
            "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
            "memory.current": "4096\n",
            "memory.max": "max\n",
            "memory.peak": "8192\n",
            "memory.stat": "anon 1\nfile 2\nkernel_stack 3\nnot_known 9\npgfault 4\n",
            "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n",
            "pids.current": "5\n",
            "pids.max": "max\n",
            "io.stat": "253:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 rbytes=7\n",
        }
    )
    cpu, memory = metrics.cpu, metrics.memory
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (30, 20, 10)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (3, 2, 1)
    assert (cpu.psi.some.avg10, cpu.psi.some.total) == (1.5, 77)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (4096, UNLIMITED, 8192)
    assert (memory.anon, memory.file, memory.kernel_stack, memory.pgfault) == (1, 2, 3, 4)
    assert (metrics.memory_events.high, metrics.memory_events.oom_kill) == (1, 4)
    assert (metrics.pids.current, metrics.pids.limit) == (5, UNLIMITED)
    assert [(entry.major, entry.minor, entry.rbytes, entry.wios) for entry in metrics.io.usage] == [
        (253, 0, 1, 4),
        (8, 16, 7, 0),
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "x", "-1", "9" * 400, "usage_usec", "usage_usec ²", "a:b rbytes=1"])
def test_a_guest_that_lies_counts_as_nothing(text: str) -> None:
    names = ("cpu.stat", "cpu.pressure", "memory.current", "memory.stat", "memory.events", "pids.current", "io.stat")
    metrics = to_metrics(dict.fromkeys(names, text))
    assert metrics.cpu.usage_usec == 0
    assert metrics.memory.usage == 0
    assert not metrics.io.usage


def test_the_sum_of_containers() -> None:
    total = Metrics()
    for number in (1, 2):
        files = {
            "pids.current": str(number),
            "pids.max": "max",
            "memory.current": str(number << 20),
            "cpu.stat": f"usage_usec {number}00\n",
            "cpu.pressure": "some avg10=1.00 avg60=0 avg300=0 total=7\n",
            "io.stat": f"253:0 rbytes={number}\n",
        }
        add_metrics(total, to_metrics(files))
    assert (total.pids.current, total.pids.limit) == (3, UNLIMITED)
    assert (total.memory.usage, total.cpu.usage_usec) == (3 << 20, 300)
    assert [entry.rbytes for entry in total.io.usage] == [1, 2]
    assert not total.cpu.HasField("psi")


def test_counters_of_interfaces() -> None:
    eth0 = NetworkStats(
        name="eth0",
        rx_bytes=1,
        rx_packets=2,
        rx_errors=3,
        rx_dropped=4,
        tx_bytes=(1 << 64) - 1,
        tx_packets=6,
        tx_errors=7,
        tx_dropped=8,
    )
    (entry,) = to_metrics({}, [eth0]).network
    assert (entry.name, entry.rx_bytes, entry.rx_packets, entry.rx_errors, entry.rx_dropped) == ("eth0", 1, 2, 3, 4)
    assert (entry.tx_bytes, entry.tx_packets, entry.tx_errors, entry.tx_dropped) == ((1 << 64) - 1, 6, 7, 8)


def test_a_guest_with_odd_interfaces() -> None:
    many = [NetworkStats(name=f"eth{number}") for number in range(1000)]
    assert len(to_metrics({}, many).network) == 64
    assert not to_metrics({}, [NetworkStats(name="x" * 16), NetworkStats(name="a\nb")]).network


def test_files_of_a_guest_that_are_endless() -> None:
    """A statistics file of 16 MiB once took 3.5 s and 350 MiB."""
    endless = "anon 1\n" + "".join(f"key{number} {number}\n" for number in range(1_000_000))
    began = time.process_time()
    metrics = to_metrics({"memory.stat": endless, "cpu.pressure": endless, "x" * 100_000: endless, "io.stat": endless})
    assert metrics.memory.anon == 1
    assert time.process_time() - began < 0.5
