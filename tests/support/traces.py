"""A realistic trace of one container, without a machine: `container_start()` gives the lines of its store.

python -m support.traces DIR     # writes it as a store under DIR, for `kata-runtime trace show --trace-dir DIR`
"""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

SANDBOX = "3f9c2a1b7e54"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BEGIN = 1_766_000_000_000_000_000
MS = 1_000_000


class Maker:
    """Collects spans; times are ms after the beginning."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        start: float,
        end: float,
        parent: str = "",
        *,
        agent: bool = False,
        kind: int = 1,
        error: str = "",
        events: tuple[tuple[float, str, dict[str, str]], ...] = (),
        **attributes: str,
    ) -> str:
        span_id = f"{len(self.spans) + 1:016x}"
        source = "agent" if agent else "runtime"
        span: dict[str, Any] = {
            "traceId": TRACE,
            "spanId": span_id,
            "parentSpanId": parent,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": str(BEGIN + int(start * MS)),
            "endTimeUnixNano": str(BEGIN + int(end * MS)),
            "attributes": _pairs({"source": source, "sandbox_id": SANDBOX, **attributes}),
            "events": [
                {"name": what, "timeUnixNano": str(BEGIN + int(at * MS)), "attributes": _pairs(details)}
                for at, what, details in events
            ],
            "status": {"code": 2, "message": error} if error else {},
        }
        self.spans.append({"agent": agent, "span": span})
        return span_id

    def lines(self, per_line: int = 25) -> list[str]:
        lines = []
        for agent in (False, True):
            spans = [entry["span"] for entry in self.spans if entry["agent"] is agent]
            resource = {"attributes": _pairs({"service.name": "kata-agent" if agent else "kata"})}
            for index in range(0, len(spans), per_line):
                scope = {"scope": {"name": "kata_telemetry"}, "spans": spans[index : index + per_line]}
                lines.append(json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}))
        return lines


def _pairs(attributes: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]


def container_start(*, error: str = "") -> Maker:
    """`kata-runtime run -- COMMAND` under TCG, as its spans tell it; `error` lets crun fail with it."""
    make = Maker()
    root = make.add("rootSpan", 0, 2703.0 if error else 3012.4, error=error)
    make.add("loadConfig", 1.1, 14.3, root, file="/etc/kata-containers/configuration.toml")
    create = make.add("create", 15.2, 2701.0, root)
    config = make.add("createSandboxFromConfig", 16.0, 2540.5, create)
    make.add("createSandbox", 16.8, 21.4, config)
    virtiofsd = make.add("startVirtiofsd", 22.0, 61.7, config, shared="/run/kata/3f9c2a1b7e54/shared")
    make.add("bindMount", 23.1, 24.0, virtiofsd)
    make.add("startVsockBackend", 22.3, 88.9, config)
    start_vm = make.add("StartVM", 62.1, 2391.0, config, accelerator="tcg", machine="q35")
    _qmp(
        make,
        make.add("launchQemu", 63.0, 171.2, start_vm, pid="4711"),
        120.0,
        "qmp_capabilities query-version query-kvm query-name",
    )
    connect = make.add("waitVM", 171.9, 2361.4, start_vm, address="hvsock:///run/kata/vsock.sock:1024")
    make.add("boot.firmware", 172.5, 402.8, connect, firmware="SeaBIOS")
    kernel: tuple[tuple[float, str, dict[str, str]], ...] = (
        (410.0, "Linux version 6.1.0-41-cloud-amd64", {}),
        (1320.4, "virtio_blk virtio2: [vda]", {}),
        (1650.0, "Run /init as init process", {}),
    )
    make.add("boot.kernel", 402.8, 1654.6, connect, events=kernel)
    make.add("boot.initramfs", 1654.6, 1939.1, connect, root="erofs")
    agent = make.add("boot.agent", 1939.1, 2358.0, connect, python="3.11.2")
    make.add("imports", 1941.0, 2296.3, agent, agent=True)
    mounts = make.add("mountAll", 2297.5, 2322.0, agent, agent=True)
    for number, point in enumerate(["/proc", "/sys", "/dev", "/dev/pts", "/run", "/sys/fs/cgroup", "/tmp", "/dev/shm"]):
        make.add("mount", 2298.0 + number * 3, 2300.2 + number * 3, mounts, agent=True, target=point)
    make.add("listen", 2323.1, 2357.0, agent, agent=True, port="1024")
    make.add("clockSync", 2362.0, 2371.8, start_vm, bound_us="210", rounds="8")
    _qmp(make, start_vm, 2372.5, "query-status query-cpus-fast query-hotpluggable-cpus query-memory-devices query-pci")
    _sandbox(make, config)
    _container(make, create, error)
    if error:
        return make
    _run(make, root)
    return make


def _qmp(make: Maker, parent: str, start: float, commands: str) -> None:
    for number, command in enumerate(commands.split()):
        make.add(f"qmp.{command}", start + number * 1.3, start + number * 1.3 + 0.9, parent, kind=3)


def _sandbox(make: Maker, parent: str) -> None:
    call = make.add("AgentService.CreateSandbox", 2392.2, 2538.8, parent, kind=3)
    server = make.add("create_sandbox", 2394.0, 2536.9, call, agent=True, kind=2)
    for number in range(12):
        at = 2395.0 + number * 3
        make.add("load_kernel_module", at, at + 2.8, server, agent=True, module=f"module{number}")
    storage = make.add("add_storages", 2433.0, 2498.4, server, agent=True)
    make.add("virtiofs_mount", 2434.1, 2497.0, storage, agent=True, source="kataShared")
    namespaces = make.add("setup_shared_namespaces", 2499.0, 2531.5, server, agent=True)
    for number, kind in enumerate(["ipc", "uts"]):
        make.add("setup", 2500.0 + number * 15, 2514.1 + number * 15, namespaces, agent=True, namespace=kind)
    make.add("sethostname", 2532.0, 2532.4, server, agent=True)


def _container(make: Maker, parent: str, error: str) -> None:
    make.add("bindMountContainerRootfs", 2541.0, 2544.2, parent, container_id="c1")
    failed = f"CreateContainer failed: {error}" if error else ""
    call = make.add("AgentService.CreateContainer", 2545.0, 2699.7, parent, kind=3, container_id="c1", error=failed)
    server = make.add("create_container", 2546.8, 2697.7, call, agent=True, kind=2, container_id="c1", error=error)
    for number in range(4):
        at = 2548.0 + number * 5
        make.add("mount", at, at + 4.1, server, agent=True, container_id="c1")
    make.add("write_bundle", 2569.0, 2572.5, server, agent=True, container_id="c1")
    make.add("crun create", 2573.0, 2696.0, server, agent=True, container_id="c1", error=error)


def _run(make: Maker, root: str) -> None:
    start = make.add("Start", 2701.5, 2763.0, root, container_id="c1")
    call = make.add("AgentService.StartContainer", 2702.1, 2762.4, start, kind=3, container_id="c1")
    server = make.add("start_container", 2704.0, 2760.5, call, agent=True, kind=2, container_id="c1")
    make.add("crun start", 2704.8, 2759.1, server, agent=True, container_id="c1")
    wait = make.add("Wait", 2763.4, 2838.2, root, container_id="c1")
    waiting = make.add("AgentService.WaitProcess", 2763.9, 2837.6, wait, kind=3, container_id="c1")
    server = make.add("wait_process", 2765.8, 2836.0, waiting, agent=True, kind=2, container_id="c1")
    exited = ((2835.2, "exited", {"status": "7"}),)
    make.add("process", 2759.2, 2835.4, root, agent=True, container_id="c1", events=exited)
    stop = make.add("Stop", 2838.8, 3011.0, root)
    remove = make.add("AgentService.RemoveContainer", 2839.4, 2901.3, stop, kind=3, container_id="c1")
    server = make.add("remove_container", 2841.2, 2899.5, remove, agent=True, kind=2, container_id="c1")
    make.add("crun delete", 2842.0, 2881.7, server, agent=True, container_id="c1")
    for number in range(8):
        make.add("unmount", 2882.5 + number * 2, 2884.1 + number * 2, server, agent=True, container_id="c1")
    sandbox = make.add("stopSandbox", 2901.9, 2951.0, stop)
    call = make.add("AgentService.DestroySandbox", 2902.4, 2950.4, sandbox, kind=3)
    server = make.add("destroy_sandbox", 2904.1, 2948.8, call, agent=True, kind=2)
    make.add("kill_all", 2905.0, 2911.2, server, agent=True)
    make.add("sync", 2912.0, 2947.9, server, agent=True)
    vm = make.add("StopVM", 2951.4, 3004.7, stop)
    _qmp(make, vm, 2952.0, "quit")
    make.add("waitVM", 2954.0, 3004.2, vm, status="0")
    for number, what in enumerate(["virtiofsd", "vsock", "unmount", "rmdir"]):
        make.add("Cleanup", 3005.0 + number * 1.4, 3006.2 + number * 1.4, stop, what=what)


def write_store(trace_dir: Path, make: Maker | None = None, **meta: Any) -> Path:
    """The trace as a finished store under `trace_dir`."""
    make = make or container_start()
    directory = trace_dir / str(meta.get("sandbox_id", SANDBOX))
    directory.mkdir(parents=True)
    (directory / "spans.jsonl").write_text("".join(line + "\n" for line in make.lines()))
    content = {
        "sandbox_id": SANDBOX,
        "name": "web",
        "command": "sh",
        "start": BEGIN,
        "trace_id": TRACE,
        "root_id": f"{1:016x}",
        "root_name": "rootSpan",
        "outcome": "exit 7",
        "spans": len(make.spans),
        **meta,
    }
    (directory / "meta.json").write_text(json.dumps(content))
    return directory


def slowed(name: str, amount: float, make: Maker | None = None) -> Maker:
    """A container's start (or `make`) in which `name` takes `amount` ms longer; all that comes after it is later."""
    make = make or container_start()
    at = next(e["span"] for e in make.spans if e["span"]["name"] == name)
    until = int(at["endTimeUnixNano"])
    for span in (entry["span"] for entry in make.spans):
        for key in ("startTimeUnixNano", "endTimeUnixNano"):
            if int(span[key]) >= until:
                span[key] = str(int(span[key]) + int(amount * MS))
    return make


def fill(trace_dir: Path, count: int, seed: int = 1) -> None:
    """A store of `count` traces, a minute after one another: pods of three deployments, one in forty failed, one in
    fifty with a slow kernel.
    """
    random = Random(seed)
    for number in range(count):
        failed = number % 40 == 7
        make = container_start(error="no such file or directory" if failed else "")
        for name, usual in (("boot.kernel", 200.0), ("imports", 120.0), ("virtiofs_mount", 30.0)):
            slowed(
                name, random.random() * usual + (2500.0 if name == "boot.kernel" and number % 50 == 3 else 0.0), make
            )
        later, trace_id = number * 60_000 * MS, f"{number:032x}"
        begin = BEGIN + later
        for span in (entry["span"] for entry in make.spans):
            span["traceId"] = trace_id
            for key in ("startTimeUnixNano", "endTimeUnixNano"):
                span[key] = str(int(span[key]) + later)
            for event in span["events"]:
                event["timeUnixNano"] = str(int(event["timeUnixNano"]) + later)
        app = ("web", "api", "worker")[number % 3]
        image = f"registry.local/shop/{app}:1.{number // 300}"
        pod = f"{app}-{random.randrange(16**6):06x}"
        labels = {"k8s.pod.name": pod, "k8s.namespace.name": "shop", "container.image.name": image}
        end = max(int(entry["span"]["endTimeUnixNano"]) for entry in make.spans)
        sandbox = f"{random.randrange(16**12):012x}"
        meta = {"start": begin, "end": end, "trace_id": trace_id, "labels": labels, "name": app, "command": "sh"}
        outcome = {"outcome": "error", "failure": "no such file or directory"} if failed else {"outcome": "exit 0"}
        write_store(trace_dir, make, sandbox_id=sandbox, **meta, **outcome)


if __name__ == "__main__":
    print(write_store(Path(sys.argv[1])))
