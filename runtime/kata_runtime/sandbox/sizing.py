"""How large a sandbox's VM is, by what its containers may use (docs/decisions/0061, 0070).

Their limits on top of `default_vcpus` and `default_memory`, which are what the guest itself may need.
"""

import math
import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kata_runtime.config.model import Config
from kata_runtime.errors import SandboxError
from kata_runtime.oci.limits import Asked, Limits, asked_by
from kata_telemetry.span import Site

__all__ = ["Asked", "Sizes", "asked_by", "base_of", "check_update", "room_of", "vm_sizes"]

_trace = Site(package="virtcontainers", subsystem="sandbox")

_MIB: Final = 1 << 20
# Kata's for x86-64. A CPU of the guest is a thread of the host's: there may be more than the host has CPUs.
_MOST_CPUS: Final = 240
# How many a VM may get while it runs where neither the configuration says it nor the host has more. Each costs the
# guest a place that the kernel makes at boot.
_ROOM_CPUS: Final = 8


@dataclass(frozen=True)
class Sizes:
    """What of the VM can be asked for per sandbox; None takes the configuration's. `memory` in MiB."""

    vcpus: int | None = None
    memory: int | None = None


def _host_cpus() -> int:
    return os.cpu_count() or 1


def _host_memory() -> int:
    """MiB that a VM can have of the host: a guest's memory is a file."""
    largest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (has if largest == resource.RLIM_INFINITY else min(has, largest)) // _MIB


def base_of(config: Config) -> Sizes:
    """The VM of a sandbox whose containers have no limits."""
    return Sizes(config.hypervisor.vcpus(_host_cpus()), config.hypervisor.default_memory)


def room_of(config: Config, vm: Sizes) -> Sizes:
    """How large a VM that starts like this may get while it runs: as it is, where the configuration says so."""
    if config.runtime.static_sandbox_resource_mgmt:
        return vm
    vcpus = config.hypervisor.default_maxvcpus or max(_host_cpus(), _ROOM_CPUS)
    memory = min(config.hypervisor.default_maxmemory or _host_memory(), _host_memory())
    return Sizes(max(vm.vcpus or 1, vcpus), max(vm.memory or 0, memory))


def vm_sizes(
    config: Config,
    sizes: Sizes,
    asked: Asked,
    *,
    containers: Iterable[Asked] = (),
    host_cpus: int | None = None,
    host_memory: int | None = None,
) -> Sizes:
    """The VM's, all of them, for a pod that asks for so much; `sizes` of the caller's own come first.

    Where `containers` ask for more together, they have it as far as there is room: limits may be more than a host has.
    `host_memory` is in MiB; by default the host is asked.

    Raises:
        SandboxError: the pod, or one of the containers, asks for more than the configuration or the host has.
    """
    with _trace.span("sizeVM") as span:
        host_cpus, host_memory = host_cpus or _host_cpus(), host_memory or _host_memory()
        limits = _Limits.of(config, host_cpus, host_memory)
        known = list(containers)
        for one in (asked, *known):
            limits.check(config, sizes, one)
        together = Asked(
            max(asked.cpus, math.fsum(one.cpus for one in known)), max(asked.memory, sum(one.memory for one in known))
        )
        vcpus, memory = _sized(config, sizes, together, host_cpus, limits)
        span.set(vcpus=vcpus, memory_mib=memory)
        return Sizes(vcpus, memory)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The most that a VM may have: CPUs, MiB of memory, and CPUs of one that its caller sizes."""

    cpus: int
    memory: int
    own_cpus: int

    @classmethod
    def of(cls, config: Config, host_cpus: int, host_memory: int) -> "_Limits":
        hypervisor = config.hypervisor
        cpus = hypervisor.default_maxvcpus or _MOST_CPUS
        # A container's quota is a share of time, which more CPUs than the host's can have as well.
        return cls(cpus, hypervisor.default_maxmemory or host_memory, min(cpus, host_cpus))

    def check(self, config: Config, sizes: Sizes, asked: Asked) -> None:
        """Raises SandboxError for more."""
        hypervisor = config.hypervisor
        cpus, memory = math.ceil(asked.cpus), math.ceil(asked.memory / _MIB)
        if sizes.vcpus:
            configured = self.own_cpus == hypervisor.default_maxvcpus
            _check("CPUs", sizes.vcpus, self.own_cpus, "default_maxvcpus" if configured else "", "--cpus {} or fewer")
        else:
            _check("CPUs", cpus, self.cpus, "default_maxvcpus" if hypervisor.default_maxvcpus else "")
        key = "default_maxmemory" if hypervisor.default_maxmemory else ""
        size = sizes.memory or max(memory, hypervisor.default_memory)
        _check("MiB of memory", size, self.memory, key, "--memory {}M or less" if sizes.memory else "lower the limit")


def _sized(config: Config, sizes: Sizes, asked: Asked, host_cpus: int, limits: _Limits) -> tuple[int, int]:
    hypervisor = config.hypervisor
    wanted = math.ceil(asked.memory / _MIB)
    vcpus = hypervisor.vcpus(host_cpus)
    if asked.cpus:
        own = vcpus if hypervisor.default_vcpus < 0 else min(hypervisor.default_vcpus, host_cpus)
        vcpus = min(math.ceil(round(own + asked.cpus, 6)), limits.cpus)
    return sizes.vcpus or vcpus, sizes.memory or min(hypervisor.default_memory + wanted, limits.memory)


def _check(what: str, asked: int, most: int, key: str, remedy: str = "lower the limit") -> None:
    """`key` is the one of the configuration that says so, if any."""
    if asked > most:
        whose = f"the configuration's {key} allows" if key else "a VM of this host can have"
        hint = remedy.format(most) + (f", or raise {key}" if key else "")
        raise SandboxError(f"{asked} {what} are asked for: {whose} {most}", hint=hint)


def check_update(resources: Mapping[str, Any], room: Sizes, *, keeps: bool) -> None:
    """Refuse new limits of a container that a VM of at most `room` can't give; `keeps` is whether it keeps its size.

    Raises:
        SandboxError: so.
    """
    asked = Limits().changed(resources).asked
    vcpus, memory = room.vcpus or 1, room.memory or 0
    said = ""
    if asked.memory > memory * _MIB:
        said, key = f"memory.limit: {asked.memory} bytes are more than the {memory} MiB", "default_maxmemory"
    elif asked.cpus > vcpus:
        said, key = f"cpu.quota: {asked.cpus:g} CPUs are more than the {vcpus}", "default_maxvcpus"
    if not said:
        return
    if keeps:
        hint = "make the container anew with this limit, or set [runtime] static_sandbox_resource_mgmt = false"
        raise SandboxError(f"resources.{said} of the VM, which keeps its size", hint=hint)
    hint = f"lower the limit; [hypervisor.qemu] {key} says how much a VM may get while it runs"
    raise SandboxError(f"resources.{said} that the VM can have while it runs", hint=hint)
