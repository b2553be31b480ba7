"""QEMU as a hypervisor: what the configuration says of it, and what this host lets it do."""

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

from kata_runtime.config.model import QemuConfig
from kata_runtime.errors import KataError
from kata_runtime.hypervisor.findings import Finding, Verdict
from kata_runtime.hypervisor.machine import Identity, MachineSpec, Surroundings, Terms
from kata_runtime.hypervisor.qemu import accelerator
from kata_runtime.hypervisor.qemu.accelerator import Accelerator, Usability
from kata_runtime.hypervisor.qemu.argv import to_argv
from kata_runtime.hypervisor.qemu.machine import QemuMachine, launch_qemu
from kata_runtime.hypervisor.qemu.spec import TEMPLATE_PORTS, Channels, QemuSpec
from kata_runtime.hypervisor.qemu.tsc import TscMeter, tsc_reader
from kata_runtime.hypervisor.users import User, Users
from kata_runtime.process import Privileges, find_program
from kata_runtime.told import first_time
from kata_telemetry.span import Site

__all__ = ["Qemu"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")
_log = logging.getLogger("kata.qemu")

_PACKAGE = "qemu-system-x86"
# KVM_CREATE_VM (linux/kvm.h).
_KVM_CREATE_VM = 0xAE01


class Qemu:
    """See `Hypervisor`."""

    name = "qemu"

    def __init__(self, config: QemuConfig, users: Users | None = None) -> None:
        self._config = config
        self._users = users or Users()
        self._accelerator = Accelerator.TCG
        self._privileges: Privileges | None = None
        self._tsc = TscMeter(None)

    @contextmanager
    def prepared(self, name: str) -> Iterator[Terms]:
        """See Hypervisor."""
        config = self._config
        self._accelerator = _choose(config)
        kvm = self._accelerator is Accelerator.KVM
        # What it measures by is the time from here to `launch`, in which helpers start.
        self._tsc = TscMeter(None if kvm else tsc_reader())
        vhost_net = kvm and not config.disable_vhost_net
        if not config.rootless:
            yield Terms(None, vhost_net, self._accelerator.value)
            return
        with self._users.taken(name) as user:
            self._privileges = _privileges(user, kvm)
            yield Terms(self._privileges, vhost_net, self._accelerator.value)

    def launch(self, spec: MachineSpec, where: Surroundings) -> AbstractAsyncContextManager[QemuMachine]:
        """See Hypervisor."""
        return launch_qemu(self._whole(spec, self._tsc.khz()), where, privileges=self._privileges)

    def identity(self, spec: MachineSpec) -> Identity:
        """See Hypervisor."""
        # What QEMU would be told, without what differs from start to start and shapes nothing.
        plain = replace(spec, name="", devices=(), hotplug=True, memory_fd=-1, saved_fd=-1)
        whole = self._whole(plain, 0)
        # The program is among the files: PATH may lead to it by one link or another.
        settings = {"argv": to_argv(whole, Channels(0, 0, 0))[1:], "ports": TEMPLATE_PORTS, "cpu": host_cpu()}
        return Identity(settings, (Path(whole.program), spec.kernel, spec.initrd, spec.image))

    def _whole(self, spec: MachineSpec, tsc_khz: int) -> QemuSpec:
        config = self._config
        return QemuSpec(
            spec,
            program=self._program(),
            accelerator=self._accelerator,
            kernel_params=config.kernel_params,
            seccomp=config.seccompsandbox,
            machine_type=config.machine_type,
            cpu_features=config.cpu_features,
            tsc_khz=tsc_khz,
        )

    def examine(self, root: Path) -> Iterator[Finding]:
        """See Hypervisor."""
        yield self._examine_kvm(root)
        try:
            yield Finding("QEMU", Verdict.OK, self._program())
        except KataError as error:
            yield Finding("QEMU", Verdict.MISSING, str(error), error.hint)

    def _program(self) -> str:
        return find_program(self._config.path or "qemu-system-x86_64", package=_PACKAGE)

    def _examine_kvm(self, root: Path) -> Finding:
        device = root / "dev/kvm"
        usability = accelerator.kvm_usability(device, root / "proc/cpuinfo", rootless=self._config.rootless)
        if usability.usable and os.geteuid() == 0:
            usability = creates_vm(device)
        if usability.usable:
            return Finding("KVM", Verdict.OK, f"{device} creates VMs" if os.geteuid() == 0 else f"{device} is usable")
        if self._config.accelerator == "kvm":
            hint = 'set [hypervisor.qemu] accelerator = "auto" to fall back to emulation'
            return Finding("KVM", Verdict.MISSING, usability.reason, hint)
        return Finding("KVM", Verdict.SLOWER, f"{usability.reason}; {accelerator.EMULATION}")


def creates_vm(device: Path) -> Usability:
    """Whether KVM really makes a VM."""
    try:
        with device.open("r+b", buffering=0) as kvm:
            os.close(ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return Usability(False, f"{device} creates no VM: {error.strerror}")
    return Usability(True)


def host_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and flags of the host's first processor: with KVM they are the guest's."""
    with cpuinfo.open() as file:
        lines = list(itertools.islice(file, 40))
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "Features")
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    return "; ".join(first.get(name, "") for name in wanted)


def _choose(config: QemuConfig) -> Accelerator:
    """What QEMU runs the guest by; a warning goes to the log."""
    with _trace.span("chooseAccelerator") as span:
        chosen, warning = accelerator.choose(config.accelerator, accelerator.kvm_usability(rootless=config.rootless))
        span.set(accelerator=chosen)
        if warning:
            span.set(reason=warning)
    if warning:
        _log.log(logging.WARNING if first_time("no-kvm", warning) else logging.INFO, warning)
    return chosen


def _privileges(user: User, kvm: bool) -> Privileges:
    """Of the user that is the machine's own."""
    groups = (os.stat("/dev/kvm").st_gid,) if kvm else ()  # noqa: PTH116 - one attribute of a device
    return Privileges(user.uid, user.uid, groups, lease=user.lease)
