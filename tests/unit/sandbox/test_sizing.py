"""How large a VM is."""

import json
from typing import Any

import pytest

from kata_runtime.config.model import Config, QemuConfig, RuntimeConfig
from kata_runtime.errors import ConfigError, SandboxError
from kata_runtime.oci.limits import Asked, Limits, asked_by
from kata_runtime.sandbox.sizing import Sizes, check_update, room_of, vm_sizes

GIB = 1 << 30


def of(**resources: Any) -> dict[str, Any]:
    return {"linux": {"resources": resources}}


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ({}, Asked()),
        ({"linux": None}, Asked()),
        (of(cpu={"quota": 300_000, "period": 100_000}, memory={"limit": 4 * GIB}), Asked(3.0, 4 * GIB)),
        (of(cpu={"quota": 50_000}, memory=None), Asked(0.5)),
        (of(cpu={"quota": -1, "period": 100_000, "shares": 2048}, memory={"limit": -1}), Asked()),
        (of(memory={"limit": 9223372036854771712}), Asked()),
        (of(cpu={"quota": 0}, unified={"cpu.max": "250000 100000", "memory.max": "1048576"}), Asked(2.5, 1 << 20)),
        (of(unified={"cpu.max": "max", "memory.max": "max"}), Asked()),
    ],
)
def test_limits_of_a_container(spec: dict[str, Any], asked: Asked) -> None:
    assert asked_by(spec, pod=False) == asked


CRI = "io.kubernetes.cri.sandbox-"
CRI_O = "io.kubernetes.cri-o.PodLinuxResources"


@pytest.mark.parametrize(
    ("annotations", "asked"),
    [
        ({}, Asked()),
        ({f"{CRI}cpu-quota": "150000", f"{CRI}cpu-period": "100000", f"{CRI}memory": str(GIB)}, Asked(1.5, GIB)),
        (
            {f"{CRI}cpu-quota": "0", f"{CRI}cpu-period": "100000", f"{CRI}cpu-shares": "512", f"{CRI}memory": "0"},
            Asked(),
        ),
        ({CRI_O: json.dumps({"cpu_period": 100000, "cpu_quota": 200000, "memory_limit_in_bytes": GIB})}, Asked(2, GIB)),
        ({CRI_O: "{}"}, Asked()),
    ],
)
def test_limits_of_a_pod(annotations: dict[str, str], asked: Asked) -> None:
    # The limits of its own container are no pod's.
    assert asked_by({**of(memory={"limit": 5}), "annotations": annotations}, pod=True) == asked


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({f"{CRI}memory": "1Gi"}, f"annotation {CRI}memory: expected an integer, got '1Gi'"),
        ({f"{CRI}cpu-quota": "1.5"}, f"annotation {CRI}cpu-quota: expected an integer"),
        ({CRI_O: "{"}, f"annotation {CRI_O} is not JSON"),
        ({CRI_O: "[]"}, f"annotation {CRI_O}: expected an object"),
        ({CRI_O: '{"cpu_quota": "many"}'}, "annotation cpu_quota: expected an integer, got 'many'"),
    ],
)
def test_annotations_that_are_no_numbers(annotations: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked_by({"annotations": annotations}, pod=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("config", "sizes", "asked", "vm"),
    [
        ({}, Sizes(), Asked(), Sizes(1, 2048)),
        ({"default_vcpus": -1}, Sizes(), Asked(), Sizes(2, 2048)),
        ({}, Sizes(), Asked(3, 4 * GIB), Sizes(4, 6144)),
        ({}, Sizes(), Asked(0.5), Sizes(2, 2048)),
        ({"default_vcpus": 0.5}, Sizes(), Asked(0.5), Sizes(1, 2048)),
        ({"default_vcpus": -1}, Sizes(), Asked(1.0), Sizes(3, 2048)),
        ({"default_vcpus": 64.0}, Sizes(), Asked(0.1 + 0.2), Sizes(3, 2048)),
        ({}, Sizes(), Asked(0, 1), Sizes(1, 2049)),
        ({"default_maxvcpus": 3, "default_maxmemory": 5000}, Sizes(), Asked(3, 4 * GIB), Sizes(3, 5000)),
        ({}, Sizes(2, 512), Asked(3, 4 * GIB), Sizes(2, 512)),
        ({}, Sizes(), Asked(0, 23 * GIB), Sizes(1, 24000)),
    ],
)
def test_the_vm(config: dict[str, Any], sizes: Sizes, asked: Asked, vm: Sizes) -> None:
    assert vm_sizes(Config(QemuConfig(**config)), sizes, asked, host_cpus=2, host_memory=24_000) == vm


@pytest.mark.parametrize(
    ("config", "sizes", "asked", "said"),
    [
        ({}, Sizes(), Asked(0, 900 * GIB), "921600 MiB of memory are asked for: a VM of this host can have 24000"),
        ({}, Sizes(memory=900 << 10), Asked(), "921600 MiB of memory are asked for: a VM of this host can have 24000"),
        ({"default_memory": 30_000}, Sizes(), Asked(), "30000 MiB of memory are asked for"),
        ({}, Sizes(), Asked(1000), "1000 CPUs are asked for: a VM of this host can have 240"),
        (
            {"default_maxvcpus": 2},
            Sizes(),
            Asked(2.5),
            "3 CPUs are asked for: the configuration's default_maxvcpus allows 2",
        ),
        (
            {"default_maxvcpus": 2},
            Sizes(vcpus=3),
            Asked(),
            "3 CPUs are asked for: the configuration's default_maxvcpus",
        ),
        ({}, Sizes(vcpus=99), Asked(), "99 CPUs are asked for: a VM of this host can have 2"),
        ({"default_maxvcpus": 9}, Sizes(vcpus=3), Asked(), "3 CPUs are asked for: a VM of this host can have 2"),
        (
            {"default_maxmemory": 3000},
            Sizes(),
            Asked(0, 3 * GIB),
            "3072 MiB of memory are asked for: the configuration's default_maxmemory allows 3000",
        ),
    ],
)
def test_more_than_there_is(config: dict[str, Any], sizes: Sizes, asked: Asked, said: str) -> None:
    with pytest.raises(SandboxError) as caught:
        vm_sizes(Config(QemuConfig(**config)), sizes, asked, host_cpus=2, host_memory=24_000)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("pod", "containers", "vm"),
    [
        (Asked(2, GIB), [Asked(0.5, GIB // 2), Asked(0.5)], Sizes(3, 3072)),
        (Asked(1, GIB), [Asked(1.5, GIB), Asked(1.5, GIB)], Sizes(4, 4096)),
        # Limits of all may be more than there is; that of each may not.
        (Asked(), [Asked(200, 20 * GIB), Asked(200, 20 * GIB)], Sizes(240, 24_000)),
    ],
)
def test_containers_of_a_pod(pod: Asked, containers: list[Asked], vm: Sizes) -> None:
    assert vm_sizes(Config(), Sizes(), pod, containers=containers, host_cpus=2, host_memory=24_000) == vm


def test_a_container_that_alone_is_too_large() -> None:
    with pytest.raises(SandboxError, match="30720 MiB of memory are asked for"):
        vm_sizes(Config(), Sizes(), Asked(), containers=[Asked(0, 30 * GIB)], host_cpus=2, host_memory=24_000)


def test_how_large_a_vm_may_get() -> None:
    config = Config(QemuConfig(default_maxvcpus=3, default_maxmemory=4096))
    assert room_of(config, Sizes(2, 2048)) == Sizes(3, 4096)
    # What it starts with it keeps.
    assert room_of(config, Sizes(5, 8192)) == Sizes(5, 8192)
    assert (room_of(Config(), Sizes(1, 64)).vcpus or 0) >= 8
    static = Config(runtime=RuntimeConfig(static_sandbox_resource_mgmt=True))
    assert room_of(static, Sizes(1, 2048)) == Sizes(1, 2048)


def test_limits_change_one_by_one() -> None:
    limits = Limits().changed({"cpu": {"quota": 150_000, "period": 50_000}, "memory": {"limit": GIB}})
    assert limits.asked == Asked(3, GIB)
    assert limits.changed({"cpu": {"period": 100_000, "quota": 0}, "memory": {}}).asked == Asked(1.5, GIB)
    assert limits.changed({"cpu": {"quota": -1}}).asked == Asked(0, GIB)
    assert limits.changed({"unified": {"memory.max": "max", "cpu.max": "max 50000"}}).asked == Asked()
    assert limits.changed({"cpu": {"shares": 5}, "pids": {"limit": 5}}) == limits


VM = Sizes(2, 2048)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"memory": {"limit": 2 * GIB}, "cpu": {"quota": 200_000, "period": 100_000}}, ""),
        ({"memory": {"limit": -1}, "cpu": {"quota": -1, "shares": 10_000}}, ""),
        (
            {"memory": {"limit": 6 * GIB}},
            "resources.memory.limit: 6442450944 bytes are more than the 2048 MiB",
        ),
        ({"unified": {"memory.max": str(6 * GIB)}}, "resources.memory.limit: 6442450944 bytes"),
        ({"cpu": {"quota": 250_000}}, "resources.cpu.quota: 2.5 CPUs are more than the 2"),
    ],
)
@pytest.mark.parametrize(
    ("keeps", "why"), [(True, "of the VM, which keeps its size"), (False, "can have while it runs")]
)
def test_an_update_beyond_the_vm(resources: dict[str, Any], said: str, keeps: bool, why: str) -> None:
    if not said:
        check_update(resources, VM, keeps=keeps)
        return
    with pytest.raises(SandboxError) as caught:
        check_update(resources, VM, keeps=keeps)
    assert said in str(caught.value)
    assert why in str(caught.value)
