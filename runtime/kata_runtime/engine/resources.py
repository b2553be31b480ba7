"""`update`, `events`, `ps`, `features`: what a container uses and may use, and what this runtime can do."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_common.documents import parse_json
from kata_runtime.engine.life import found
from kata_runtime.errors import KataError, RootfsError

if TYPE_CHECKING:
    from kata_protos.containerd.cgroups2_pb2 import Metrics
    from kata_runtime.engine.store import Record

__all__ = ["add_arguments"]

_MAX_RESOURCES = 1 << 20
# Options of `update`, by where their value is in OCI's LinuxResources.
_OPTIONS = {
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-idle": ("cpu", "idle"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
    "blkio-weight": ("blockIO", "weight"),
}
_TEXTS = ("cpuset-cpus", "cpuset-mems")


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands and their options."""
    update = commands.add_parser("update", help="change what a container may use")
    update.add_argument("-r", "--resources", metavar="FILE", help="OCI's LinuxResources (JSON); - is stdin")
    for name, (table, key) in _OPTIONS.items():
        kind = str if name in _TEXTS else int
        update.add_argument(f"--{name}", metavar="TEXT" if kind is str else "N", type=kind, help=f"{table}.{key}")
    update.add_argument("id", metavar="CONTAINER")
    update.set_defaults(run=_update)
    events = commands.add_parser("events", help="print what a container uses, as JSON")
    events.add_argument("--stats", action="store_true", help="once")
    events.add_argument("--interval", metavar="SECONDS", type=_interval, default=5.0, help="how often (default: 5)")
    events.add_argument("id", metavar="CONTAINER")
    events.set_defaults(run=_events)
    features = commands.add_parser("features", help="print what this runtime can do, as OCI's features.md has it")
    features.set_defaults(run=_features)


def _interval(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _update(options: argparse.Namespace) -> int:
    from google.protobuf.empty_pb2 import Empty

    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call

    record = found(options)
    resources: dict[str, Any] = _given(options.resources) if options.resources else {}
    for name, (table, key) in _OPTIONS.items():
        value = getattr(options, name.replace("-", "_"))
        if value is not None:
            resources.setdefault(table, {})[key] = value
    if not resources:
        raise KataError("update: nothing is to be changed", hint="--memory, --cpu-quota, … or --resources FILE")
    request = task.UpdateTaskRequest(id=record.id)
    request.resources.value = json.dumps(resources).encode()
    call(record, "Update", request, Empty)
    return 0


def _given(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            content = sys.stdin.buffer.read(_MAX_RESOURCES)
        else:
            with Path(path).open("rb") as file:
                content = file.read(_MAX_RESOURCES)
        resources = parse_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise RootfsError(f"--resources {path} can't be read: {error}") from error
    if not isinstance(resources, dict) or not all(isinstance(part, dict | list) for part in resources.values()):
        raise RootfsError(f"--resources {path}: expected an object of objects, as linux.resources")
    return resources


def _events(options: argparse.Namespace) -> int:
    record = found(options)
    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call
    from kata_runtime.shim.ttrpc.errors import ConnectionLost, DeadlineExceeded, FailedPrecondition

    while True:
        try:
            print(json.dumps({"type": "stats", "id": record.id, "data": _stats(record)}), flush=True)
        except (ConnectionLost, FailedPrecondition):
            if options.stats:
                raise
            return 0
        if options.stats:
            return 0
        try:
            call(record, "Wait", task.WaitRequest(id=record.id), task.WaitResponse, timeout=options.interval)
        except DeadlineExceeded:
            continue
        return 0


def _stats(record: "Record") -> dict[str, Any]:
    """In the form of runc's `events` (its types/events.go), as far as cgroup v2 knows it."""
    from kata_protos.containerd import task_pb2 as task
    from kata_protos.containerd.cgroups2_pb2 import Metrics
    from kata_runtime.engine.tasks import call

    answer = call(record, "Stats", task.StatsRequest(id=record.id), task.StatsResponse)
    metrics = Metrics.FromString(answer.stats.value)
    return {
        "cpu": {
            "usage": {
                "total": metrics.cpu.usage_usec * 1000,
                "kernel": metrics.cpu.system_usec * 1000,
                "user": metrics.cpu.user_usec * 1000,
            },
            "throttling": {
                "periods": metrics.cpu.nr_periods,
                "throttledPeriods": metrics.cpu.nr_throttled,
                "throttledTime": metrics.cpu.throttled_usec * 1000,
            },
        },
        "memory": _memory(metrics),
        "pids": {"current": metrics.pids.current, "limit": _limit(metrics.pids.limit)},
        "network_interfaces": [
            {
                "Name": interface.name,
                "RxBytes": interface.rx_bytes,
                "RxPackets": interface.rx_packets,
                "TxBytes": interface.tx_bytes,
                "TxPackets": interface.tx_packets,
            }
            for interface in metrics.network
        ],
    }


def _memory(metrics: "Metrics") -> dict[str, Any]:
    memory = metrics.memory
    raw = {field.name: value for field, value in memory.ListFields() if isinstance(value, int)}
    return {
        "usage": {"limit": memory.usage_limit, "usage": memory.usage, "max": memory.max_usage},
        "swap": {"limit": memory.swap_limit, "usage": memory.swap_usage},
        "raw": raw,
    }


def _limit(value: int) -> int:
    """runc's 0 for what has no limit."""
    return 0 if value >= 1 << 63 else value


def _features(_options: argparse.Namespace) -> int:
    from importlib.metadata import version

    from kata_runtime.oci.spec import CAPABILITIES, NAMESPACES

    features = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": sorted([*NAMESPACES, "network", "user"]),
            "capabilities": sorted(CAPABILITIES),
            "cgroup": {"v1": False, "v2": True, "systemd": False, "systemdUser": False},
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
        },
        "annotations": {"org.katacontainers.python.version": version("kata-python")},
    }
    print(json.dumps(features, indent=2))
    return 0
