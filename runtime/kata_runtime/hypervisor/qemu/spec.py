"""One QEMU process, independent of how it is told."""

from dataclasses import dataclass

from kata_runtime.hypervisor.machine import MachineSpec
from kata_runtime.hypervisor.qemu.accelerator import Accelerator

__all__ = ["HOTPLUG_PORTS", "MEMORY_STEP", "MOST_MEMORY", "OWN_PORTS", "TEMPLATE_PORTS", "Channels", "QemuSpec"]

# MiB: a block of memory as Linux on x86-64 adds and removes it (arch/x86/mm/init_64.c, probe_memory_block_size).
MEMORY_STEP = 128
# MiB of address space for memory that comes later, within the 40 bits of an emulated processor's addresses.
MOST_MEMORY = 512 << 10

# How many devices can come while a guest runs, where it has places for them at all (`MachineSpec.hotplug`), and how
# many of the machine's own, where it may grow: memory, and a SCSI controller. Each place costs every boot.
HOTPLUG_PORTS = 4
OWN_PORTS = 2
# The same of a template, whose clones get everything that way; a multifunction device has eight functions.
TEMPLATE_PORTS = 8


@dataclass(frozen=True)
class QemuSpec:
    """The machine, and what of it only QEMU has.

    `tsc_khz` is the rate of the host's time stamp counter, 0 where it is not known.
    """

    machine: MachineSpec
    program: str
    accelerator: Accelerator
    kernel_params: str = ""
    seccomp: str = ""
    machine_type: str = "q35"
    cpu_features: str = ""
    tsc_khz: int = 0


@dataclass(frozen=True)
class Channels:
    """QEMU's ends of its monitor, the guest's console and the firmware's port: fds that it inherits."""

    qmp: int
    console: int
    firmware: int
