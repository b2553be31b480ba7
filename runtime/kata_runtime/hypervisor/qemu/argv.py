"""QEMU's command line from a `VmSpec`. Pure: no I/O, so that tests are tables of examples."""

from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.boot import CPUS, KERNEL_PARAMETERS, KERNEL_PARAMETERS_OF, MACHINE_OPTIONS
from kata_runtime.hypervisor.qemu.spec import HOTPLUG_PORTS, NetDevice, VhostUserFs, VmSpec, Vsock

__all__ = ["hotplug_ports", "kernel_command_line", "to_argv"]


def kernel_command_line(spec: VmSpec) -> str:
    """Nothing of one sandbox is in it (docs/architecture.md); the configuration's parameters come last and win."""
    ours = [*KERNEL_PARAMETERS, *KERNEL_PARAMETERS_OF[spec.accelerator]]
    if spec.accelerator is Accelerator.TCG and spec.tsc_khz:
        # The emulated counter is the host's. A kernel that has to measure it is misled where the host is busy
        # (docs/decisions/0005-boot.md).
        ours.append(f"tsc_early_khz={spec.tsc_khz}")
    return " ".join(filter(None, [*ours, spec.kernel_params]))


def to_argv(spec: VmSpec) -> list[str]:
    """The whole command line, program first."""
    return [
        spec.program,
        *_machine(spec),
        *_memory(spec),
        *_boot(spec),
        *_monitors(spec),
        *(_vsock(spec.vsock) if spec.vsock else ()),
        *(_shared(spec.shared) if spec.shared else ()),
        *(_ports() if spec.hotplug else ()),
        *(argument for device in spec.network for argument in _network(device)),
        *(("-sandbox", spec.seccomp) if spec.seccomp else ()),
    ]


def _machine(spec: VmSpec) -> list[str]:
    kvm = spec.accelerator is Accelerator.KVM
    cpu = ",".join(filter(None, [CPUS[spec.accelerator], spec.cpu_features]))
    return [
        "-name", f"sandbox-{spec.name},debug-threads=on",
        "-machine", ",".join((spec.machine_type, "memory-backend=memory", *MACHINE_OPTIONS)),
        "-accel", "kvm" if kvm else "tcg,thread=multi",
        "-cpu", cpu,
        "-smp", f"{spec.vcpus},sockets=1,cores={spec.vcpus},threads=1",
        "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-no-reboot",
        "-rtc", "base=utc,driftfix=slew,clock=host",
    ]  # fmt: skip


def _memory(spec: VmSpec) -> list[str]:
    # Shared, because vhost-user backends (virtiofsd, vsock) work in the guest's memory.
    return [
        "-m", f"{spec.memory}M",
        "-object", f"memory-backend-memfd,id=memory,size={spec.memory}M,share=on",
    ]  # fmt: skip


def _boot(spec: VmSpec) -> list[str]:
    return [
        "-kernel", str(spec.kernel),
        "-initrd", str(spec.initrd),
        "-append", kernel_command_line(spec),
        "-drive", f"id=root,if=none,file={_escaped(str(spec.image))},format=raw,readonly=on,cache.direct=off",
        "-device", "virtio-blk-pci,drive=root,serial=root",
        "-device", "virtio-rng-pci,rng=entropy",
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
    ]  # fmt: skip


def _monitors(spec: VmSpec) -> list[str]:
    return [
        "-chardev", f"socket,id=qmp,fd={spec.qmp_fd}",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=console,fd={spec.console_fd}",
        "-serial", "chardev:console",
        "-chardev", f"socket,id=firmware,fd={spec.firmware_fd}",
        # SeaBIOS writes its messages here: it tells when the firmware starts and when it hands over.
        "-device", "isa-debugcon,iobase=0x402,chardev=firmware",
    ]  # fmt: skip


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


def hotplug_ports() -> list[str]:
    """Names of the places for devices that come later."""
    return [f"port-{number}" for number in range(HOTPLUG_PORTS)]


def _ports() -> list[str]:
    # Functions of one device: the firmware and the kernel look at a slot less for each.
    arguments = []
    for number, port in enumerate(hotplug_ports()):
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
