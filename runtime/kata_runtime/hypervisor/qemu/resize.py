"""CPUs and memory that come and go while the guest runs, by QMP.

Memory is that of one virtio-mem device (QEMU, docs/system/devices; linux/virtio_mem.h): it comes with the first growth,
as large as the machine may ever get, and gives the guest as much of that as is asked for. A CPU is a device of QEMU's
by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.machine import MachineSpec, Online
from kata_runtime.hypervisor.qemu.argv import room_for_memory
from kata_runtime.hypervisor.qemu.qmp import Qmp
from kata_runtime.hypervisor.qemu.spec import MEMORY_STEP
from kata_telemetry.span import Site

__all__ = ["Resizer"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")
_log = logging.getLogger("kata.qemu")

_MIB: Final = 1 << 20
# The device of memory that comes later, and what stands behind it.
_MEMORY: Final = "more-memory"
_DEVICE: Final = f"{_MEMORY}-device"
# Of _OST: the removal has begun.
_IN_PROGRESS: Final = 0x84
# Seconds for a guest to take what it is given; and to let go of what it has, which it need not. All CPUs of an emulated
# guest have to stop together before one goes, which on a busy host takes its time.
_GROWS_WITHIN: Final = 30.0
_SHRINKS_WITHIN: Final = 5.0
_CPU_GOES_WITHIN: Final = 20.0


class Resizer:
    """Of one machine. `take_port` gives a place for a device."""

    def __init__(self, qmp: Qmp, machine: MachineSpec, take_port: Callable[[str], str]) -> None:
        self._qmp = qmp
        self._machine = machine
        self._take_port = take_port
        self._vcpus = machine.vcpus
        # MiB beyond what it has booted with: what the guest was told to have, and what it has.
        self._requested = 0
        self._plugged = 0
        self._there = False

    async def resize(self, vcpus: int, memory: int, online: Online) -> tuple[int, int]:
        """See `Machine.resize`."""
        more_memory = -(-max(0, memory - self._machine.memory) // MEMORY_STEP) * MEMORY_STEP
        self._check(vcpus, more_memory)
        with _trace.span("resizeVM", vcpus=vcpus, memory_mib=self._machine.memory + more_memory):
            if vcpus != self._vcpus:
                # One may have gone since it was waited for.
                self._vcpus = sum("qom-path" in place for place in await self._cpus())
            come = await self._add_cpus(vcpus - self._vcpus)
            grows = more_memory > self._requested
            if more_memory != self._requested:
                with _trace.span("resizeMemory", memory_mib=more_memory):
                    await self._set_memory(more_memory, online, come)
            elif come:
                await online(come, False)
            if vcpus < self._vcpus:
                await self._remove_cpus(self._vcpus - vcpus)
            if grows and self._plugged < more_memory:
                raise HypervisorError(
                    f"the guest has taken {self._plugged} of {more_memory} MiB more within {_GROWS_WITHIN:g} s",
                    hint="its console is in the sandbox's log",
                )
        return self._vcpus, self._machine.memory + self._plugged

    def _check(self, vcpus: int, more_memory: int) -> None:
        most, room = max(self._machine.vcpus, self._machine.max_vcpus), room_for_memory(self._machine)
        if vcpus > most:
            raise HypervisorError(f"the VM can't have {vcpus} CPUs while it runs, but {most}")
        if more_memory > room:
            raise HypervisorError(
                f"the VM can't have {self._machine.memory + more_memory} MiB of memory while it runs, "
                f"but {self._machine.memory + room}"
            )

    async def _cpus(self) -> list[dict[str, Any]]:
        """The places for CPUs, by number."""
        listed: Any = await self._qmp.execute("query-hotpluggable-cpus")
        return sorted(listed, key=lambda place: tuple(sorted(place["props"].items())))

    async def _add_cpus(self, count: int) -> int:
        """How many have come."""
        if count <= 0:
            return 0
        free = [place for place in await self._cpus() if "qom-path" not in place][:count]
        for place in free:
            name = "vcpu-" + "-".join(str(number) for _, number in sorted(place["props"].items()))
            with _trace.span("HotplugAddDevice", device=name):
                await self._qmp.execute("device_add", {"driver": place["type"], "id": name, **place["props"]})
            self._vcpus += 1
        return len(free)

    async def _remove_cpus(self, count: int) -> None:
        """The first one stays in any case: the kernel runs on it."""
        taken = [(number, place["qom-path"]) for number, place in enumerate(await self._cpus()) if "qom-path" in place]
        for number, path in reversed(taken[1:][-count:]):
            with _trace.span("HotplugRemoveDevice", device=path):
                await self._remove_cpu(number, path)
            has = sum("qom-path" in place for place in await self._cpus())
            if has == self._vcpus:
                _log.warning("the guest keeps a CPU more than asked for, of %d", has)
                return
            self._vcpus = has

    async def _remove_cpu(self, number: int, path: str) -> None:
        """Wait until the guest has let go of it, or said that it does not.

        Its word is ACPI's _OST, of which QEMU tells. The end of QEMU's device may never be told: an emulated processor
        that has gone is still remembered (QEMU 7.2).
        """
        with (
            self._qmp.expecting("ACPI_DEVICE_OST", lambda data: _settled(data, number)) as said,
            self._qmp.expecting("DEVICE_DELETED", lambda data: data.get("path") == path) as gone,
        ):
            await self._qmp.execute("device_del", {"id": path})
            await asyncio.wait({said, gone}, timeout=_CPU_GOES_WITHIN, return_when=asyncio.FIRST_COMPLETED)

    async def _set_memory(self, wanted: int, online: Online, come: int) -> None:
        """`come` is how many CPUs the guest has to be told of as well."""
        size, grows = wanted * _MIB, wanted > self._requested
        with self._qmp.expecting("MEMORY_DEVICE_SIZE_CHANGE", lambda data: data.get("size") == size) as there:
            await self._request_memory(size)
            self._requested = wanted
            if grows or come:
                await online(come, grows)
            # The event comes a second late where others came before it: it is held back (QEMU, monitor/monitor.c).
            self._plugged = await self._plugged_now()
            if self._plugged != wanted:
                try:
                    async with asyncio.timeout(_GROWS_WITHIN if grows else _SHRINKS_WITHIN):
                        await there
                except TimeoutError:
                    pass
                self._plugged = await self._plugged_now()
        if self._plugged > wanted:
            _log.warning("the guest keeps %d MiB of memory, %d more than asked for", self._plugged, wanted)

    async def _request_memory(self, size: int) -> None:
        if self._there:
            where = {"path": f"/machine/peripheral/{_DEVICE}", "property": "requested-size"}
            await self._qmp.execute("qom-set", {**where, "value": size})
            return
        port = self._take_port("more memory")
        most = room_for_memory(self._machine) * _MIB
        # Shared, as all of the guest's memory: helpers work in it. It takes what the guest uses of it.
        backend = {"qom-type": "memory-backend-memfd", "id": _MEMORY, "size": most, "share": True}
        await self._qmp.execute("object-add", backend)
        front = {"driver": "virtio-mem-pci", "id": _DEVICE, "memdev": _MEMORY, "bus": port, "requested-size": size}
        with _trace.span("HotplugAddDevice", device=_DEVICE, port=port):
            await self._qmp.execute("device_add", front)
        self._there = True

    async def _plugged_now(self) -> int:
        """MiB, by QEMU's own account."""
        listed: Any = await self._qmp.execute("query-memory-devices")
        return int(next(entry["data"]["size"] for entry in listed if entry["data"].get("id") == _DEVICE)) // _MIB


def _settled(data: Mapping[str, Any], number: int) -> bool:
    """Whether a guest says of this CPU how its removal went: not that it is on its way (ACPI 6.4, 6.3.5, _OST)."""
    info = data.get("info")
    if not isinstance(info, Mapping) or (info.get("slot-type"), info.get("slot")) != ("CPU", str(number)):
        return False
    return info.get("status") != _IN_PROGRESS
