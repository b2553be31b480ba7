"""A VM has what its containers may use."""

import json
import time
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.empty_pb2 import Empty

from kata_protos.containerd.task_pb2 import UpdateTaskRequest
from kata_runtime.shim.ttrpc.errors import RpcError
from support.kata_containers import KataContainers

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

SIZE = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo"


def test_limits_of_a_container(kata: KataContainers) -> None:
    limits = ("--cpus", "3", "--memory-limit", str(4 << 30))
    done = kata.run("sized", "sh", "-c", SIZE, options=limits)
    assert done.returncode == 0, done.stderr
    cpus, memory = done.stdout.decode().splitlines()
    assert int(cpus) == 4
    assert int(memory.split()[1]) > 5 << 20  # KiB, of 6 GiB; the guest's kernel keeps some


def test_more_than_the_host_has_is_refused_at_once(kata: KataContainers) -> None:
    begun = time.monotonic()
    done = kata.run("huge", "true", options=("--memory-limit", str(900 << 30)))
    assert done.returncode != 0
    assert b"921600 MiB of memory are asked for: a VM of this host can have" in done.stderr
    assert time.monotonic() - begun < 15  # no guest boots in it, even on a busy machine
    kata.nothing_remains()


Update = Callable[..., Awaitable[None]]


def update_of(kata: KataContainers, name: str) -> Update:
    async def update(**resources: object) -> None:
        request = UpdateTaskRequest(id=name)
        request.resources.value = json.dumps(resources).encode()
        await kata.call(name, "Update", request, Empty)

    return update


def cpus_and_memory(kata: KataContainers, name: str, exec_id: str) -> tuple[int, int]:
    """The guest's CPUs that are online, and its memory in MiB."""
    cpus, memory = kata.exec(name, exec_id, "sh", "-c", SIZE).stdout.decode().splitlines()
    return int(cpus), int(memory.split()[1]) >> 10


async def test_a_pod_by_the_word_of_cri_and_updates_of_it(kata: KataContainers) -> None:
    said = {"container-type": "sandbox", "sandbox-id": "pod", "sandbox-memory": str(1 << 30)}
    said |= {"sandbox-cpu-quota": "150000", "sandbox-cpu-period": "100000"}
    options = [word for name, value in said.items() for word in ("--annotation", f"io.kubernetes.cri.{name}={value}")]
    kata.detached("pod", "sleep", "1000", options=tuple(options))
    cpus, memory = cpus_and_memory(kata, "pod", "begin")
    assert cpus == 3
    assert 2700 < memory <= 3072
    update = update_of(kata, "pod")
    for resources, why in (
        (
            {"memory": {"limit": 900 << 30}},
            "resources.memory.limit: 966367641600 bytes are more than the [0-9]+ MiB that the VM can have",
        ),
        (
            {"cpu": {"quota": 40_000_000, "period": 100_000}},
            "resources.cpu.quota: 400 CPUs are more than the [0-9]+ that the VM can have while it runs",
        ),
    ):
        with pytest.raises(RpcError, match=why):
            await update(**resources)
    assert cpus_and_memory(kata, "pod", "same") == (cpus, memory)
    await update(memory={"limit": 3 << 30}, cpu={"quota": 300_000, "period": 100_000})
    assert b'"usage_limit": 3221225472' in kata.tasks("metrics", "--format", "json", "pod").stdout
    more_cpus, more_memory = cpus_and_memory(kata, "pod", "more")
    assert more_cpus == 4
    assert more_memory - memory == 2048
    kata.tasks("delete", "--force", "pod")


async def test_updates_make_a_vm_larger_and_smaller(kata: KataContainers) -> None:
    """From 256 MiB to 1 GiB, and from one CPU to four; each a span with its time."""
    kata.tracing()
    kata.detached("grows", "sleep", "1000", options=("--memory-limit", str(256 << 20), "--cpus", "0.5"))
    first = cpus_and_memory(kata, "grows", "first")
    assert first[0] == 2
    update = update_of(kata, "grows")
    await update(memory={"limit": 1 << 30}, cpu={"quota": 300_000, "period": 100_000})
    grown = cpus_and_memory(kata, "grows", "grown")
    assert (grown[0], grown[1] - first[1]) == (4, 768)
    # It is memory as any other.
    used = kata.exec("grows", "use", "dd", "if=/dev/zero", "of=/dev/null", "bs=900M", "count=1")
    assert b"1+0 records out" in used.stderr
    await update(memory={"limit": 256 << 20}, cpu={"quota": 50_000, "period": 100_000})
    assert cpus_and_memory(kata, "grows", "shrunk") == first
    await update(memory={"limit": 512 << 20})
    again = cpus_and_memory(kata, "grows", "again")
    assert (again[0], again[1] - first[1]) == (2, 256)
    kata.tasks("delete", "--force", "grows")
    kata.nothing_remains()
    spans = {span.name: span for span in kata.trace("grows").spans}
    for name in ("updateResources", "resizeVM", "resizeMemory", "HotplugAddDevice", "online_resources"):
        assert name in spans, sorted(spans)
        print(name, spans[name].duration / 1e6)
