"""A VM has what its containers may use."""

import json
import time

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


async def test_a_pod_by_the_word_of_cri_and_an_update_beyond_it(kata: KataContainers) -> None:
    said = {"container-type": "sandbox", "sandbox-id": "pod", "sandbox-memory": str(1 << 30)}
    said |= {"sandbox-cpu-quota": "150000", "sandbox-cpu-period": "100000"}
    options = [word for name, value in said.items() for word in ("--annotation", f"io.kubernetes.cri.{name}={value}")]
    kata.detached("pod", "sleep", "1000", options=tuple(options))
    cpus, memory = kata.exec("pod", "size", "sh", "-c", SIZE).stdout.decode().splitlines()
    assert int(cpus) == 3
    assert 2.7 < int(memory.split()[1]) / (1 << 20) <= 3  # GiB

    async def update(**resources: object) -> None:
        request = UpdateTaskRequest(id="pod")
        request.resources.value = json.dumps(resources).encode()
        await kata.call("pod", "Update", request, Empty)

    for resources, why in (
        (
            {"memory": {"limit": 6 << 30}},
            "resources.memory.limit: 6442450944 bytes are more than the 3072 MiB",
        ),
        ({"cpu": {"quota": 400_000, "period": 100_000}}, "resources.cpu.quota: 4 CPUs are more than the 3 of the VM"),
    ):
        with pytest.raises(RpcError, match=why):
            await update(**resources)
    await update(memory={"limit": 1 << 30}, cpu={"quota": 300_000, "period": 100_000})
    assert b'"usage_limit": 1073741824' in kata.tasks("metrics", "--format", "json", "pod").stdout
    kata.tasks("delete", "--force", "pod")
