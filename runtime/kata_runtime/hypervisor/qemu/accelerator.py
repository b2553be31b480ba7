"""Which QEMU accelerator this host can really use."""

import errno
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from fcntl import ioctl
from pathlib import Path

from kata_runtime.errors import HostError

__all__ = ["EMULATION", "Accelerator", "Usability", "choose", "kvm_usability"]

# KVM_GET_API_VERSION and the only version there is (linux/kvm.h, Documentation/virt/kvm/api.rst).
_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12


# What the fallback means. QEMU calls only hardware virtualization a security boundary (docs/system/security.rst).
EMULATION = (
    "QEMU emulates the guest's CPU, about ten times slower, and does not promise that emulation holds a hostile guest"
)
REFUSE = '[hypervisor.qemu] accelerator = "kvm" refuses to start instead, "tcg" says that it is wanted'


class Accelerator(StrEnum):
    """QEMU's `-accel`."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class Usability:
    """Whether something can be used, and if not, why."""

    usable: bool
    reason: str = ""


def kvm_usability(
    device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo"), *, rootless: bool = False
) -> Usability:
    """Whether KVM can run ordinary guests here; with `rootless` for a QEMU that is not root, but of the device's group.

    A device that opens is no proof: some hosts offer a paravirtual KVM on which a stock kernel hangs early, and they
    show neither vmx nor svm among the CPU's flags.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = {errno.ENOENT: "there is no such device", errno.EACCES: "permission denied"}
        return Usability(False, f"{device}: {why.get(error.errno or 0, error.strerror)}")
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        version = ioctl(fd, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return Usability(False, f"{device}: {error.strerror}")
    finally:
        os.close(fd)
    if version != _KVM_API_VERSION:
        return Usability(False, f"{device}: API version {version}, not {_KVM_API_VERSION}")
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    if "vmx" not in flags and "svm" not in flags:
        return Usability(False, f"{device} opens, but the CPU shows neither vmx nor svm")
    if rootless and mode & 0o060 != 0o060 and mode & 0o006 != 0o006:
        # Where no udev has run, as in containers, it is root's alone.
        trouble = f"{device} has mode {mode:04o}, and QEMU runs as an unprivileged user of the device's group"
        return Usability(False, f"{trouble}: chgrp kvm {device}; chmod 660 {device}")
    return Usability(True)


def choose(wanted: str, kvm: Usability) -> tuple[Accelerator, str]:
    """The accelerator for the configured `auto`, `kvm` or `tcg`, and a warning where one is due (else empty).

    Raises:
        HostError: `kvm` is wanted and can't be used.
    """
    if wanted == "tcg":
        return Accelerator.TCG, ""
    if kvm.usable:
        return Accelerator.KVM, ""
    if wanted == "kvm":
        raise HostError(
            f"KVM can't be used: {kvm.reason}",
            hint='set [hypervisor.qemu] accelerator = "auto" to fall back to emulation',
        )
    return Accelerator.TCG, f"KVM can't be used ({kvm.reason}); {EMULATION}; {REFUSE}"
