"""The seam to a hypervisor stays narrow, and what implements it does."""

import inspect
from pathlib import Path

import pytest

from kata_runtime.config.model import Config
from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.boot import Boot, BootStage
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.fake import FakeHypervisor, FakeMachine
from kata_runtime.hypervisor.machine import End, Hypervisor, Machine, MachineSpec, NetDevice, Surroundings, Terms
from kata_runtime.hypervisor.qemu.machine import QemuMachine

SPEC = MachineSpec(name="a", kernel=Path("k"), initrd=Path("i"), image=Path("r"), memory=64, vcpus=1, hotplug=True)


def members(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def methods(kind: type) -> set[str]:
    return {name for name in members(kind) if inspect.isfunction(vars(kind)[name])}


@pytest.mark.parametrize("protocol", [Machine, Hypervisor])
def test_at_most_eight_methods(protocol: type) -> None:
    assert 0 < len(methods(protocol)) <= 8


def test_implementations_have_no_other_public_methods() -> None:
    """What only one of them can do is nothing that a sandbox may ask for."""
    assert methods(QemuMachine) == methods(Machine)
    assert methods(type(hypervisor_of(Config.default()))) == methods(Hypervisor)


async def test_a_fake_machine_as_any_other() -> None:
    said: list[str] = []
    hypervisor: Hypervisor = FakeHypervisor(["Linux version 6.1"])
    with hypervisor.prepared("a") as terms:
        assert terms == Terms()
    async with hypervisor.launch(SPEC, Surroundings(on_console=said.append)) as machine:
        assert (machine.end, machine.boot.stage, said) == (None, BootStage.KERNEL, ["Linux version 6.1"])
        for number in range(4):
            await machine.plug(NetDevice(f"network-{number}", "0a:00", -1))
        with pytest.raises(HypervisorError, match="no place for network-4"):
            await machine.plug(NetDevice("network-4", "0a:00", -1))
        await machine.pause()
        await machine.resume()
    assert await machine.wait() == machine.end == End(-9)
    with pytest.raises(HypervisorError, match="has ended"):
        await machine.pause()


def test_how_a_machine_ended() -> None:
    assert [str(End(status)) for status in (1, -9, None)] == ["exit status 1", "killed by signal 9", "it has ended"]


async def test_only_the_first_sign_of_a_stage_counts() -> None:
    boot = Boot("fake")
    boot.line("kata: agent start", 5)
    boot.line("kata: agent start", 9)
    boot.line("kata: initramfs: late", 10)
    assert (boot.stage, boot.marks[BootStage.AGENT]) == (BootStage.AGENT, 5)
    boot.line("kata-agent: ready", 11)
    await boot.ready()


@pytest.mark.parametrize(("served", "firmware", "begins"), [(-5, 90, 0), (50, 90, 50), (95, 90, 90)])
async def test_the_machine_begins_when_its_helpers_serve(served: int, firmware: int, begins: int) -> None:
    """But before the first sign of its guest: whatever a helper says, it has connected by then."""
    boot = Boot("fake")
    start = boot.marks[BootStage.MACHINE]
    boot.reached(BootStage.FIRMWARE, start + firmware)
    boot.helpers_served_at(start + served)
    assert boot.marks[BootStage.MACHINE] == start + begins


async def test_what_is_left_of_a_machine_that_died() -> None:
    machine = FakeMachine(SPEC)
    machine.say("one", "two")
    machine.die(1, "no such device")
    machine.die(2)
    machine.kill()
    assert (machine.end, machine.output, machine.console(1)) == (End(1), "no such device", ["two"])
