"""cgroup v2 files as containerd's metrics. The text is the guest's: what is not a number counts as nothing."""

from collections.abc import Iterable, Mapping
from itertools import islice

from google.protobuf.message import Message

from kata_protos.agent_pb2 import NetworkStats
from kata_protos.containerd.cgroups2_pb2 import Metrics, PSIStats

__all__ = ["add_metrics", "to_metrics"]

# What containerd's cgroups library makes of "max".
UNLIMITED = (1 << 64) - 1
_CPU = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec", "nr_bursts",
        "burst_usec")  # fmt: skip
# Files with one number, and where it goes.
_SINGLE = {
    "memory.current": "usage",
    "memory.max": "usage_limit",
    "memory.peak": "max_usage",
    "memory.swap.current": "swap_usage",
    "memory.swap.max": "swap_limit",
}
_IO = ("rbytes", "wbytes", "rios", "wios")
_MAX_DEVICES = 256
_MAX_NAME = 64
_MAX_FILE = 64 << 10  # characters; the longest that a kernel writes is io.stat, with a line for each disk
_MAX_INTERFACES = 64
_INTERFACE_NAME = 15  # IFNAMSIZ less its end


def to_metrics(files: Mapping[str, str], network: Iterable[NetworkStats] = ()) -> Metrics:
    """`io.containerd.cgroups.v2.Metrics` of the files' contents (kernel documentation, admin-guide/cgroup-v2.rst).

    `network` are the guest's interfaces; only newer clients of containerd's look at them.
    """
    files = {name: files[name][:_MAX_FILE] for name in files if len(name) <= _MAX_NAME}
    metrics = Metrics()
    for interface in islice(network, _MAX_INTERFACES):
        if len(interface.name) <= _INTERFACE_NAME and interface.name.isprintable():
            counters = {field.name: value for field, value in interface.ListFields()}
            metrics.network.add(**counters)
    metrics.pids.current = _number(files.get("pids.current", ""))
    metrics.pids.limit = _number(files.get("pids.max", "max"))
    cpu = _pairs(files.get("cpu.stat", ""))
    for name in _CPU:
        setattr(metrics.cpu, name, cpu.get(name, 0))
    _pressure(files.get("cpu.pressure", ""), metrics.cpu.psi)
    memory = _pairs(files.get("memory.stat", ""))
    known = {field.name for field in metrics.memory.DESCRIPTOR.fields if field.message_type is None}
    for name in known & memory.keys():
        setattr(metrics.memory, name, memory[name])
    for file, name in _SINGLE.items():
        if file in files:
            setattr(metrics.memory, name, _number(files[file]))
    _pressure(files.get("memory.pressure", ""), metrics.memory.psi)
    events = _pairs(files.get("memory.events", ""))
    for name in {field.name for field in metrics.memory_events.DESCRIPTOR.fields} & events.keys():
        setattr(metrics.memory_events, name, events[name])
    for line in files.get("io.stat", "").splitlines()[:_MAX_DEVICES]:
        _device(line, metrics)
    _pressure(files.get("io.pressure", ""), metrics.io.psi)
    if "hugetlb.2MB.current" in files:
        page = metrics.hugetlb.add(pagesize="2MB")
        page.current = _number(files["hugetlb.2MB.current"])
        page.max = _number(files.get("hugetlb.2MB.max", "max"))
    return metrics


def add_metrics(total: Message, part: Message) -> None:
    """Add the counters of `part` to `total`: message by message, numbers saturating. Lists are put one after the other,
    averages over time (pressure) can't be added and stay out.
    """
    for field, value in part.ListFields():
        if field.name == "psi":
            continue
        if field.is_repeated:
            getattr(total, field.name).extend(value)
        elif isinstance(value, Message):
            add_metrics(getattr(total, field.name), value)
        else:
            setattr(total, field.name, min(getattr(total, field.name) + value, UNLIMITED))


def _number(text: str) -> int:
    text = text.strip()
    if text == "max":
        return UNLIMITED
    return min(int(text), UNLIMITED) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0


def _pairs(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {name: _number(value) for name, _, value in pairs}


def _device(line: str, metrics: Metrics) -> None:
    """`253:0 rbytes=1024 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`"""
    device, *counters = line.split() or ("",)
    major, colon, minor = device.partition(":")
    if not colon or not (major.isdecimal() and minor.isdecimal()):
        return
    entry = metrics.io.usage.add(major=min(_number(major), UNLIMITED), minor=_number(minor))
    for counter in counters:
        name, _, value = counter.partition("=")
        if name in _IO:
            setattr(entry, name, _number(value))


def _pressure(text: str, psi: PSIStats) -> None:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full` (accounting/psi.rst)."""
    for line in text.splitlines():
        kind, *values = line.split() or ("",)
        if kind not in ("some", "full"):
            continue
        data = getattr(psi, kind)
        for value in values:
            name, _, number = value.partition("=")
            if name == "total":
                data.total = _number(number)
            elif name in ("avg10", "avg60", "avg300") and number.replace(".", "", 1).isdecimal():
                setattr(data, name, float(number))
