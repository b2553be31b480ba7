"""QEMU's command line from a `QemuSpec`. Pure: no I/O, so that tests are tables of examples."""

from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.machine import Device, Disk, MachineSpec, NetDevice, VhostUserFs, Vsock
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.boot import CPUS, KERNEL_PARAMETERS, KERNEL_PARAMETERS_OF, MACHINE_OPTIONS
from kata_runtime.hypervisor.qemu.spec import (
    HOTPLUG_PORTS,
    MEMORY_STEP,
    MOST_MEMORY,
    OWN_PORTS,
    TEMPLATE_PORTS,
    Channels,
    QemuSpec,
)

__all__ = ["hotplug_ports", "kernel_command_line", "ports_of", "room_for_memory", "to_argv"]


def kernel_command_line(spec: QemuSpec) -> str:
    """Nothing of one sandbox is in it (docs/architecture.md); the configuration's parameters come last and win."""
    ours = [*KERNEL_PARAMETERS, *KERNEL_PARAMETERS_OF[spec.accelerator]]
    if spec.accelerator is Accelerator.TCG and spec.tsc_khz:
        # The emulated counter is the host's. A kernel that has to measure it is misled where the host is busy
        # (docs/decisions/0005-boot.md).
        ours.append(f"tsc_early_khz={spec.tsc_khz}")
    return " ".join(filter(None, [*ours, spec.kernel_params]))


def to_argv(spec: QemuSpec, channels: Channels) -> list[str]:
    """The whole command line, program first."""
    machine = spec.machine
    return [
        spec.program,
        *_machine(spec),
        *_memory(machine),
        *_boot(spec),
        *_monitors(channels),
        *_ports(machine),
        *(argument for device in machine.devices for argument in _device(device)),
        *(("-sandbox", spec.seccomp) if spec.seccomp else ()),
    ]


def _machine(spec: QemuSpec) -> list[str]:
    kvm = spec.accelerator is Accelerator.KVM
    vcpus, most = spec.machine.vcpus, max(spec.machine.vcpus, spec.machine.max_vcpus)
    smp = f"{vcpus},maxcpus={most}" if most > vcpus else str(vcpus)
    cpu = ",".join(filter(None, [CPUS[spec.accelerator], spec.cpu_features]))
    return [
        "-name", f"sandbox-{spec.machine.name},debug-threads=on",
        "-machine", ",".join((spec.machine_type, "memory-backend=memory", "dump-guest-core=off", *MACHINE_OPTIONS)),
        "-accel", "kvm" if kvm else "tcg,thread=multi",
        "-cpu", cpu,
        "-smp", f"{smp},sockets=1,cores={most},threads=1",
        "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-no-reboot",
        # Its processors begin when it has lost sight of the host's files (`launch_qemu`).
        *(() if spec.machine.saved_fd >= 0 else ("-S",)),
        "-rtc", "base=utc,driftfix=slew,clock=host",
    ]  # fmt: skip


def room_for_memory(machine: MachineSpec) -> int:
    """How much memory (MiB) can come to a machine while it runs."""
    more = max(0, machine.max_memory - machine.memory)
    return min(-(-more // MEMORY_STEP) * MEMORY_STEP, MOST_MEMORY)


def _memory(machine: MachineSpec) -> list[str]:
    # Shared, because vhost-user backends (virtiofsd, vsock) work in the guest's memory.
    backend = "memory-backend-memfd"
    if machine.memory_fd >= 0:
        backend = f"memory-backend-file,mem-path=/proc/self/fd/{machine.memory_fd}"
    most = f",maxmem={machine.memory + more}M" if (more := room_for_memory(machine)) else ""
    return [
        "-m", f"{machine.memory}M{most}",
        "-object", f"{backend},id=memory,size={machine.memory}M,share=on",
        *(("-incoming", "defer") if machine.saved_fd >= 0 else ()),
    ]  # fmt: skip


def _boot(spec: QemuSpec) -> list[str]:
    return [
        "-kernel", str(spec.machine.kernel),
        "-initrd", str(spec.machine.initrd),
        "-append", kernel_command_line(spec),
        "-drive", f"id=root,if=none,file={_escaped(str(spec.machine.image))},format=raw,readonly=on,cache.direct=off",
        "-device", "virtio-blk-pci,drive=root,serial=root",
        "-device", "virtio-rng-pci,rng=entropy",
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
    ]  # fmt: skip


def _monitors(channels: Channels) -> list[str]:
    return [
        "-chardev", f"socket,id=qmp,fd={channels.qmp}",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={channels.console}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=firmware,fd={channels.firmware}",
        # SeaBIOS writes its messages here: it tells when the firmware starts and when it hands over.
        "-device", "isa-debugcon,iobase=0x402,chardev=firmware",
    ]  # fmt: skip


def _device(device: Device) -> list[str]:
    match device:
        case Vsock():
            return _vsock(device)
        case VhostUserFs():
            return _shared(device)
        case NetDevice():
            return _network(device)
        case Disk():
            raise HypervisorError(f"{device.id} is a disk: it comes when the machine runs")


def _vsock(vsock: Vsock) -> list[str]:
    if vsock.vhost_fd >= 0:
        return ["-device", f"vhost-vsock-pci,guest-cid={vsock.cid},vhostfd={vsock.vhost_fd}"]
    return [
        "-chardev", f"socket,id=vsock,fd={vsock.chardev_fd}",
        "-device", "vhost-user-vsock-pci,chardev=vsock",
    ]  # fmt: skip


def _shared(shared: VhostUserFs) -> list[str]:
    return [
        "-chardev", f"socket,id=shared,fd={shared.chardev_fd}",
        "-device", f"vhost-user-fs-pci,chardev=shared,tag={shared.tag},queue-size={shared.queue_size}",
    ]  # fmt: skip


def hotplug_ports(count: int = HOTPLUG_PORTS) -> list[str]:
    """Names of the places for devices that come later."""
    return [f"port-{number}" for number in range(count)]


def ports_of(machine: MachineSpec) -> list[str]:
    """Those that a machine has."""
    if machine.memory_fd >= 0:
        return hotplug_ports(TEMPLATE_PORTS) if machine.hotplug else []
    grows = machine.max_vcpus > machine.vcpus or machine.max_memory > machine.memory
    return hotplug_ports((HOTPLUG_PORTS if machine.hotplug else 0) + (OWN_PORTS if grows else 0))


def _ports(machine: MachineSpec) -> list[str]:
    # Functions of one device: the firmware and the kernel look at a slot less for each.
    arguments = []
    for number, port in enumerate(ports_of(machine)):
        where = f"addr=1e.{number:x}" + (",multifunction=on" if number == 0 else "")
        arguments += ["-device", f"pcie-root-port,id={port},chassis={number + 1},slot={number},{where}"]
    return arguments


def _network(device: NetDevice) -> list[str]:
    vhost = f",vhost=on,vhostfd={device.vhost_fd}" if device.vhost_fd >= 0 else ""
    return [
        "-netdev", f"tap,id={device.id},fd={device.tap_fd}{vhost}",
        # Without a ROM: nobody boots from the network, and the firmware would look into it.
        "-device", f"virtio-net-pci,id={device.id}-device,netdev={device.id},mac={device.mac},romfile=",
    ]  # fmt: skip


def _escaped(value: str) -> str:
    # QEMU's option syntax: a comma in a value is written twice.
    return value.replace(",", ",,")
