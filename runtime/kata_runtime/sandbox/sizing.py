"""How large a sandbox's VM is, by what its containers may use.

As Kata's with `static_sandbox_resource_mgmt`: the containers' limits, as they are known when the sandbox is made, on
top of `default_vcpus` and `default_memory`, which are what the guest itself may need (docs/decisions/0061).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_runtime.config.model import Config
from kata_runtime.errors import SandboxError
from kata_runtime.oci.limits import Asked, asked_by
from kata_telemetry.span import Site

__all__ = ["Asked", "Sizes", "asked_by", "check_update", "vm_sizes"]

_trace = Site(package="virtcontainers", subsystem="sandbox")

_MIB: Final = 1 << 20
# Kata's for x86-64. A CPU of the guest is a thread of the host's: there may be more than the host has CPUs.
_MOST_CPUS: Final = 240


@dataclass(frozen=True)
class Sizes:
    """What of the VM can be asked for per sandbox; None takes the configuration's. `memory` in MiB."""

    vcpus: int | None = None
    memory: int | None = None


def _host_memory() -> int:
    """MiB that the host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB


def vm_sizes(
    config: Config, sizes: Sizes, asked: Asked, *, host_cpus: int | None = None, host_memory: int | None = None
) -> Sizes:
    """The VM's, all of them, for containers that ask for so much; `sizes` of the caller's own come first.

    `host_memory` is in MiB; by default the host is asked.

    Raises:
        SandboxError: more is asked for than the configuration or the host has.
    """
    with _trace.span("sizeVM") as span:
        host_cpus, host_memory = host_cpus or os.cpu_count() or 1, host_memory or _host_memory()
        vcpus, memory = _sized(config, sizes, asked, host_cpus, host_memory)
        span.set(vcpus=vcpus, memory_mib=memory)
        return Sizes(vcpus, memory)


def _sized(config: Config, sizes: Sizes, asked: Asked, host_cpus: int, host_memory: int) -> tuple[int, int]:
    hypervisor = config.hypervisor
    most_cpus, most_memory = hypervisor.default_maxvcpus or _MOST_CPUS, hypervisor.default_maxmemory or host_memory
    wanted = math.ceil(asked.memory / _MIB)
    _check("CPUs", sizes.vcpus or math.ceil(asked.cpus), most_cpus, "default_maxvcpus", hypervisor.default_maxvcpus)
    size = sizes.memory or max(wanted, hypervisor.default_memory)
    _check("MiB of memory", size, most_memory, "default_maxmemory", hypervisor.default_maxmemory)
    vcpus = hypervisor.vcpus(host_cpus)
    if asked.cpus:
        own = vcpus if hypervisor.default_vcpus < 0 else min(hypervisor.default_vcpus, host_cpus)
        vcpus = min(math.ceil(round(own + asked.cpus, 6)), most_cpus)
    return sizes.vcpus or vcpus, sizes.memory or min(hypervisor.default_memory + wanted, most_memory)


def _check(what: str, asked: int, most: int, key: str, configured: int) -> None:
    if asked > most:
        whose = f"the configuration's {key} allows" if configured else "a VM of this host can have"
        hint = "lower the limit" + (f", or raise {key}" if configured else "")
        raise SandboxError(f"{asked} {what} are asked for: {whose} {most}", hint=hint)


def check_update(resources: Mapping[str, Any], vm: Sizes) -> None:
    """Refuse new limits of a container that its VM can't give: it keeps its size.

    Raises:
        SandboxError: so.
    """
    asked = asked_by({"linux": {"resources": resources}}, pod=False)
    vcpus, memory = vm.vcpus or 1, vm.memory or 0
    said = ""
    if asked.memory > memory * _MIB:
        said = f"memory.limit: {asked.memory} bytes are more than the {memory} MiB"
    elif asked.cpus > vcpus:
        said = f"cpu.quota: {asked.cpus:g} CPUs are more than the {vcpus}"
    if said:
        hint = "make the container anew with this limit"
        raise SandboxError(f"resources.{said} of the VM, which keeps its size", hint=hint)
