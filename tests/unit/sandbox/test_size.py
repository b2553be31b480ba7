"""A VM's size follows its containers'."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_protos import agent_pb2 as pb
from kata_runtime.config.model import Config, QemuConfig, RuntimeConfig
from kata_runtime.errors import AgentError, SandboxError
from kata_runtime.hypervisor.fake import FakeMachine
from kata_runtime.hypervisor.machine import MachineSpec
from kata_runtime.oci.limits import NOTHING, Asked
from kata_runtime.sandbox.size import VmSize
from kata_runtime.sandbox.sizing import Sizes
from kata_telemetry.span import NO_SPAN
from support.fake_guest import FakeAgent

GIB = 1 << 30
CONFIG = Config(QemuConfig(default_memory=1024, default_maxmemory=8192, default_maxvcpus=6))
SPEC = MachineSpec(
    name="a", kernel=Path(), initrd=Path(), image=Path(), memory=1024, vcpus=1, max_vcpus=6, max_memory=8192
)


def limited(cpus: float, memory: int) -> dict[str, Any]:
    resources = {"cpu": {"quota": round(cpus * 100_000), "period": 100_000}, "memory": {"limit": memory}}
    return {"linux": {"resources": resources}}


class Grown:
    """A VM of one CPU and 1 GiB, and what its guest was told to take into use."""

    def __init__(self, config: Config = CONFIG, pod: Asked = NOTHING, said: Sizes | None = None) -> None:
        self.machine = FakeMachine(SPEC)
        self.agent = FakeAgent()
        has = Sizes(1, 1024)
        self.size = VmSize(config, said or Sizes(), pod, has, self.machine, NO_SPAN)
        self.applied: list[tuple[int, int]] = []

    @property
    def now(self) -> tuple[int, int]:
        return self.machine.vcpus, self.machine.memory

    @property
    def told(self) -> list[tuple[int, bool]]:
        return [(r.nb_cpus, r.cpu_only) for r in self.agent.requests if isinstance(r, pb.OnlineCPUMemRequest)]

    async def begin(self) -> None:
        await self.size.begin(self.agent.client())

    async def update(self, container_id: str, fail: Callable[[], None] = lambda: None, **resources: object) -> None:
        async def apply() -> None:
            self.applied.append(self.now)
            fail()

        await self.size.update(container_id, resources, apply)


async def test_containers_come_and_go() -> None:
    vm = Grown()
    await vm.begin()
    assert (vm.now, vm.told) == ((1, 1024), [])
    await vm.size.admit("a", limited(1.5, GIB))
    assert (vm.now, vm.told) == ((3, 2048), [(2, False)])
    await vm.size.admit("b", limited(0.5, GIB))
    await vm.size.admit("none", {"linux": None})
    assert (vm.now, vm.told[1:]) == ((3, 3072), [(0, False)])
    vm.size.leave("a")
    vm.size.leave("unknown")
    (task,) = vm.size._shrinking
    await task
    assert vm.now == (2, 2048)
    await vm.size.close()


async def test_a_clone_gets_what_its_pod_was_said_to_have() -> None:
    vm = Grown(pod=Asked(2, 2 * GIB))
    await vm.begin()
    assert vm.now == (3, 3072)
    await vm.size.admit("a", limited(1, GIB))
    assert vm.now == (3, 3072)
    # It is no longer so.
    await vm.update("a", memory={"limit": GIB // 2})
    assert (vm.now, vm.applied) == ((2, 1536), [(3, 3072)])
    # Who says the size himself has it.
    vm = Grown(said=Sizes(2, 4096), pod=Asked(4, GIB))
    await vm.begin()
    assert vm.now == (2, 4096)


async def test_a_vm_grows_before_limits_rise_and_shrinks_after_they_have_fallen() -> None:
    vm = Grown()
    await vm.begin()
    await vm.size.admit("a", limited(0.5, GIB // 4))
    assert vm.now == (2, 1280)
    await vm.update("a", cpu={"quota": 300_000}, memory={"limit": GIB})
    assert (vm.now, vm.applied) == ((4, 2048), [(4, 2048)])
    await vm.update("a", cpu={"quota": 100_000})
    assert (vm.now, vm.applied[1:]) == ((2, 2048), [(4, 2048)])
    await vm.update("a", pids={"limit": 5})
    assert vm.now == (2, 2048)
    # The most that there may be, what is the guest's own included.
    await vm.update("a", cpu={"quota": 600_000}, memory={"limit": 8 * GIB})
    assert vm.now == (6, 8192)


async def test_what_can_t_be_is_refused_and_nothing_has_changed() -> None:
    vm = Grown()
    await vm.begin()
    await vm.size.admit("a", limited(1, GIB))
    with pytest.raises(SandboxError, match=r"resources\.memory.limit: 9663676416 bytes are more than the 8192 MiB"):
        await vm.update("a", memory={"limit": 9 * GIB})
    with pytest.raises(SandboxError, match=r"resources\.cpu.quota: 7 CPUs are more than the 6"):
        await vm.size.admit("b", limited(7, 0))

    def refuse() -> None:
        raise AgentError("UpdateContainer", "INTERNAL", "no")

    with pytest.raises(AgentError):
        await vm.update("a", refuse, memory={"limit": 4 * GIB})
    assert (vm.now, vm.applied) == ((2, 2048), [(2, 5120)])


async def test_a_guest_that_takes_nothing() -> None:
    vm = Grown()
    await vm.begin()
    vm.agent.refuse["OnlineCPUMem"] = grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(AgentError):
        await vm.size.admit("a", limited(1, GIB))
    del vm.agent.refuse["OnlineCPUMem"]
    await vm.size.admit("b", limited(2, 0))
    assert vm.now == (3, 1024)


async def test_a_vm_that_keeps_its_size() -> None:
    vm = Grown(dataclasses.replace(CONFIG, runtime=RuntimeConfig(static_sandbox_resource_mgmt=True)))
    await vm.begin()
    await vm.size.admit("a", limited(4, 4 * GIB))
    await vm.update("a", memory={"limit": GIB})
    with pytest.raises(SandboxError, match="4294967296 bytes are more than the 1024 MiB of the VM, which keeps its"):
        await vm.update("a", memory={"limit": 4 * GIB})
    assert (vm.now, vm.applied) == ((1, 1024), [(1, 1024)])
