"""Block devices that come and go while the guest runs, by QMP. QEMU is given open files, never a path of the host's."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.machine import Disk
from kata_runtime.hypervisor.qemu.hotplug import await_removal
from kata_runtime.hypervisor.qemu.qmp import Qmp
from kata_telemetry.span import Site

__all__ = ["Disks"]

_trace = Site(package="virtcontainers", subsystem="hypervisor")

_CONTROLLER: Final = "scsi"
# The least number is for whoever else has file sets.
_FIRST_SET: Final = 100
# Of one target of a SCSI controller (QEMU, hw/scsi/virtio-scsi.c).
_MAX_LUNS: Final = 255


class Disks:
    """Of one machine. `take_port` gives a place for a device, `free_port` gets it back."""

    def __init__(self, qmp: Qmp, take_port: Callable[[str], str], free_port: Callable[[str], None]) -> None:
        self._qmp = qmp
        self._take_port = take_port
        self._free_port = free_port
        self._luns: set[int] = set()
        self._has_controller = False
        self._next_set = _FIRST_SET

    async def add(self, disk: Disk) -> "PluggedDisk":
        """Plug it.

        Raises:
            HypervisorError: QEMU refused, or there is no place; what had been done is undone.
        """
        number = self._next_set
        self._next_set += 1
        await self._qmp.send_file(number, disk.fd)
        try:
            await self._qmp.execute("blockdev-add", _backend(disk, number))
            try:
                place = await self._plug(disk)
            except BaseException:
                with suppress(HypervisorError):
                    await self._qmp.execute("blockdev-del", {"node-name": disk.id})
                raise
        except BaseException:
            with suppress(HypervisorError):
                await self._qmp.execute("remove-fd", {"fdset-id": number})
            raise
        return PluggedDisk(self._qmp, disk, number, lambda: self._release(place))

    async def _plug(self, disk: Disk) -> str | int:
        front = {"id": f"{disk.id}-device", "drive": disk.id, "serial": disk.id}
        if disk.driver == "virtio-blk":
            port = self._take_port(disk.id)
            try:
                await self._qmp.execute("device_add", {"driver": "virtio-blk-pci", "bus": port, **front})
            except BaseException:
                self._free_port(port)
                raise
            return port
        await self._control()
        lun = next((number for number in range(_MAX_LUNS) if number not in self._luns), None)
        if lun is None:
            raise HypervisorError(f"the VM has no place for {disk.id}: it has {_MAX_LUNS} disks")
        where = {"bus": f"{_CONTROLLER}.0", "channel": 0, "scsi-id": 0, "lun": lun}
        await self._qmp.execute("device_add", {"driver": "scsi-hd", **where, **front})
        self._luns.add(lun)
        return lun

    async def _control(self) -> None:
        """The controller comes with the first disk, and stays."""
        if self._has_controller:
            return
        port = self._take_port("a SCSI controller")
        try:
            with _trace.span("HotplugAddDevice", device=_CONTROLLER, port=port):
                await self._qmp.execute("device_add", {"driver": "virtio-scsi-pci", "id": _CONTROLLER, "bus": port})
        except BaseException:
            self._free_port(port)
            raise
        self._has_controller = True

    def _release(self, place: str | int) -> None:
        if isinstance(place, int):
            self._luns.discard(place)
        else:
            self._free_port(place)


def _backend(disk: Disk, number: int) -> dict[str, object]:
    kind = "host_device" if stat.S_ISBLK(os.fstat(disk.fd).st_mode) else "file"
    return {
        "driver": "raw",
        "node-name": disk.id,
        "read-only": disk.readonly,
        "file": {"driver": kind, "filename": f"/dev/fdset/{number}", "read-only": disk.readonly},
    }


class PluggedDisk:
    """See `Plugged`."""

    def __init__(self, qmp: Qmp, disk: Disk, number: int, release: Callable[[], None]) -> None:
        self._qmp = qmp
        self._disk = disk
        self._number = number
        self._release = release

    async def remove(self) -> None:
        """See Plugged."""
        with _trace.span("HotplugRemoveDevice", device=self._disk.id):
            await await_removal(self._qmp, f"{self._disk.id}-device", self._disk.id)
            await self._qmp.execute("blockdev-del", {"node-name": self._disk.id})
            with suppress(HypervisorError):  # it goes with the last that has it open
                await self._qmp.execute("remove-fd", {"fdset-id": self._number})
            self._release()

    async def grow(self, size: int) -> None:
        """See Plugged."""
        with _trace.span("resizeDisk", device=self._disk.id, size=size):
            await self._qmp.execute("block_resize", {"node-name": self._disk.id, "size": size})
