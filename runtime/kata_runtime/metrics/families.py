"""Kata's families of a sandbox's processes (its docs/design/kata-2-0-metrics.md), for Prometheus' library."""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kata_runtime.metrics.durations import AGENT_CALLS, CALLS
from kata_runtime.metrics.proc import Process, read

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["SandboxCollector"]

_TICKS = os.sysconf("SC_CLK_TCK")


class SandboxCollector:
    """This process, that of the hypervisor (0: none), and the calls of both sides."""

    def __init__(self, hypervisor: int) -> None:
        self._hypervisor = hypervisor

    def collect(self) -> "Iterator[Metric]":
        """What Prometheus' exposition asks for."""
        shim = read(os.getpid())
        yield from _process("kata_shim", "this runtime", shim)
        yield from _standard("kata_shim", shim)
        yield CALLS.family("kata_shim_rpc_durations_histogram_milliseconds", "Calls of containerd's.")
        yield AGENT_CALLS.family("kata_shim_agent_rpc_durations_histogram_milliseconds", "Calls of the agent.")
        if self._hypervisor:
            yield from _process("kata_hypervisor", "the hypervisor", read(self._hypervisor))


def _process(prefix: str, who: str, process: Process) -> "Iterator[Metric]":
    items = (
        ("proc_status", f"/proc/PID/status of {who} (KiB).", process.status),
        ("proc_stat", f"CPU time of {who} (clock ticks).", process.stat),
        ("io_stat", f"/proc/PID/io of {who}.", process.io),
    )
    for name, says, values in items:
        yield _gauge(f"{prefix}_{name}", says, ("item",), (((item,), value) for item, value in values.items()))
    network = process.interfaces.items()
    yield _gauge(f"{prefix}_netdev", f"/proc/PID/net/dev of {who}.", ("interface", "item"), network)
    yield _gauge(f"{prefix}_threads", f"Threads of {who}.", (), [((), process.threads)])
    yield _gauge(f"{prefix}_fds", f"Open descriptors of {who}.", (), [((), process.descriptors)])


def _standard(prefix: str, process: Process) -> "Iterator[Metric]":
    """What Prometheus' libraries say of any process."""
    from prometheus_client.metrics_core import CounterMetricFamily

    cpu = CounterMetricFamily(f"{prefix}_process_cpu_seconds", "User and system CPU time.")
    cpu.add_metric([], (process.stat.get("utime", 0) + process.stat.get("stime", 0)) / _TICKS)
    yield cpu
    for name, says, value in (
        ("max_fds", "Descriptors that may be open.", process.max_descriptors),
        ("open_fds", "Descriptors that are open.", process.descriptors),
        ("resident_memory_bytes", "Resident memory.", process.status.get("vmrss", 0) * 1024),
        ("virtual_memory_bytes", "Virtual memory.", process.status.get("vmsize", 0) * 1024),
        ("start_time_seconds", "When it was started, since the epoch.", process.started),
    ):
        yield _gauge(f"{prefix}_process_{name}", says, (), [((), value)])


def _gauge(name: str, says: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> "Metric":
    from prometheus_client.metrics_core import GaugeMetricFamily

    found = GaugeMetricFamily(name, says, labels=labels)
    for which, value in values:
        found.add_metric(which, value)
    return found
