import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.hypervisor.machine import MachineSpec, NetDevice, VhostUserFs, Vsock
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.argv import kernel_command_line, to_argv
from kata_runtime.hypervisor.qemu.spec import HOTPLUG_PORTS, OWN_PORTS, TEMPLATE_PORTS, Channels, QemuSpec

SPEC = QemuSpec(
    MachineSpec(
        name="a1",
        kernel=Path("/i/vmlinuz"),
        initrd=Path("/i/initrd"),
        image=Path("/i/root.img"),
        memory=512,
        vcpus=2,
    ),
    program="/usr/bin/qemu-system-x86_64",
    accelerator=Accelerator.TCG,
    seccomp="on",
)
CHANNELS = Channels(qmp=5, console=6, firmware=7)


def with_machine(**change: Any) -> QemuSpec:
    return dataclasses.replace(SPEC, machine=dataclasses.replace(SPEC.machine, **change))


def options(argv: list[str], name: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == name]


@pytest.mark.parametrize(
    ("change", "option", "expected"),
    [
        ({}, "-accel", "tcg,thread=multi"),
        ({"accelerator": Accelerator.KVM}, "-accel", "kvm"),
        ({"accelerator": Accelerator.KVM}, "-cpu", "host"),
        ({"accelerator": Accelerator.KVM, "cpu_features": "pmu=off"}, "-cpu", "host,pmu=off"),
        ({}, "-cpu", "max,erms=off,fsrm=off"),
        ({"cpu_features": "erms=on"}, "-cpu", "max,erms=off,fsrm=off,erms=on"),
        ({}, "-m", "512M"),
        ({}, "-object", "memory-backend-memfd,id=memory,size=512M,share=on"),
        ({}, "-smp", "2,sockets=1,cores=2,threads=1"),
        ({"machine": {"max_vcpus": 8}}, "-smp", "2,maxcpus=8,sockets=1,cores=8,threads=1"),
        ({"machine": {"max_vcpus": 1}}, "-smp", "2,sockets=1,cores=2,threads=1"),
        ({"machine": {"max_memory": 1000}}, "-m", "512M,maxmem=1024M"),
        ({"machine": {"max_memory": 512}}, "-m", "512M"),
        ({"machine": {"max_memory": 16 << 20}}, "-m", "512M,maxmem=524800M"),
        ({}, "-sandbox", "on"),
        ({}, "-chardev", "socket,id=qmp,fd=5"),
        ({}, "-chardev", "socket,id=console,fd=6"),
        ({"machine": {"devices": (Vsock(3, chardev_fd=9),)}}, "-device", "vhost-user-vsock-pci,chardev=vsock"),
        ({"machine": {"devices": (Vsock(3, chardev_fd=9),)}}, "-chardev", "socket,id=vsock,fd=9"),
        ({"machine": {"devices": (Vsock(77, vhost_fd=8),)}}, "-device", "vhost-vsock-pci,guest-cid=77,vhostfd=8"),
        ({"machine": {"devices": (NetDevice("n0", "0a:00", 11),)}}, "-netdev", "tap,id=n0,fd=11"),
        (
            {"machine": {"devices": (NetDevice("n0", "0a:00", 11, 12),)}},
            "-netdev",
            "tap,id=n0,fd=11,vhost=on,vhostfd=12",
        ),
        (
            {"machine": {"devices": (NetDevice("n0", "0a:00", 11),)}},
            "-device",
            "virtio-net-pci,id=n0-device,netdev=n0,mac=0a:00,romfile=",
        ),
        (
            {"machine": {"devices": (VhostUserFs(10, "tag"),)}},
            "-device",
            "vhost-user-fs-pci,chardev=shared,tag=tag,queue-size=1024",
        ),
    ],
)
def test_option(change: dict[str, Any], option: str, expected: str) -> None:
    spec = with_machine(**change["machine"]) if "machine" in change else dataclasses.replace(SPEC, **change)
    argv = to_argv(spec, CHANNELS)
    assert expected in options(argv, option)


def test_no_sandbox_option_where_it_is_switched_off() -> None:
    assert "-sandbox" not in to_argv(dataclasses.replace(SPEC, seccomp=""), CHANNELS)


def test_a_comma_in_a_path_is_no_option() -> None:
    argv = to_argv(with_machine(image=Path("/i/a,readonly=off")), CHANNELS)
    assert any("file=/i/a,,readonly=off," in value for value in options(argv, "-drive"))


def test_kernel_parameters_of_the_configuration_come_last() -> None:
    assert kernel_command_line(dataclasses.replace(SPEC, kernel_params="quiet x=1")).endswith(" quiet x=1")


@pytest.mark.parametrize(("accelerator", "expected"), [(Accelerator.TCG, "1"), (Accelerator.KVM, "0")])
def test_only_an_emulated_guest_clears_pages_before_virtiofsd_fills_them(
    accelerator: Accelerator, expected: str
) -> None:
    """TCG would run what was translated of a page's former code (kata_runtime.hypervisor.qemu.boot)."""
    parameters = kernel_command_line(dataclasses.replace(SPEC, accelerator=accelerator)).split()
    assert [word for word in parameters if word.startswith("init_on_alloc=")] == [f"init_on_alloc={expected}"]


@pytest.mark.parametrize(
    ("accelerator", "khz", "told"),
    [(Accelerator.TCG, 2_445_426, ["tsc_early_khz=2445426"]), (Accelerator.TCG, 0, []), (Accelerator.KVM, 1, [])],
)
def test_only_an_emulated_guest_is_told_its_counters_rate(accelerator: Accelerator, khz: int, told: list[str]) -> None:
    """KVM tells it itself."""
    parameters = kernel_command_line(dataclasses.replace(SPEC, accelerator=accelerator, tsc_khz=khz)).split()
    assert [word for word in parameters if word.startswith("tsc_")] == told


def test_nothing_of_the_sandbox_is_on_the_kernel_command_line() -> None:
    """A template's clones share it (docs/architecture.md)."""
    assert kernel_command_line(with_machine(name="other")) == kernel_command_line(SPEC)


def test_places_for_devices_that_come_later() -> None:
    def ports(spec: QemuSpec) -> list[str]:
        return [value for value in options(to_argv(spec, CHANNELS), "-device") if value.startswith("pcie-root-port")]

    assert ports(SPEC) == []
    assert len(ports(with_machine(hotplug=True))) == HOTPLUG_PORTS
    # Memory and a SCSI controller, where it may grow.
    assert len(ports(with_machine(max_vcpus=8))) == OWN_PORTS
    assert len(ports(with_machine(hotplug=True, max_memory=1024))) == HOTPLUG_PORTS + OWN_PORTS
    assert len(ports(with_machine(hotplug=True, max_memory=1024, memory_fd=7))) == TEMPLATE_PORTS


def test_nothing_of_the_guest_runs_before_it_is_told_to() -> None:
    """QEMU's root is emptied before that; what was saved was saved while it was stopped."""
    assert "-S" in to_argv(SPEC, CHANNELS)
    assert "-S" not in to_argv(with_machine(memory_fd=8, saved_fd=9), CHANNELS)
