"""Devices that come while the guest runs, by QMP."""

from contextlib import suppress

from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.qemu.qmp import Qmp
from kata_runtime.hypervisor.qemu.spec import NetDevice

__all__ = ["add_network"]


async def add_network(qmp: Qmp, device: NetDevice, port: str) -> None:
    """Plug a network device into a free port.

    Raises:
        HypervisorError: QEMU refused; what had been done is undone.
    """
    backend: dict[str, object] = {"type": "tap", "id": device.id}
    sent: list[str] = []
    try:
        for option, fd in (("fd", device.tap_fd), ("vhostfd", device.vhost_fd)):
            if fd >= 0:
                backend[option] = name = f"{device.id}-{option}"
                await qmp.send_fd(name, fd)
                sent.append(name)
        if device.vhost_fd >= 0:
            backend["vhost"] = True
        await qmp.execute("netdev_add", backend)
    except BaseException:
        for name in sent:
            with suppress(HypervisorError):
                await qmp.execute("closefd", {"fdname": name})
        raise
    front = {"driver": "virtio-net-pci", "id": f"{device.id}-device", "netdev": device.id, "mac": device.mac}
    try:
        await qmp.execute("device_add", {**front, "bus": port, "romfile": ""})
    except BaseException:
        with suppress(HypervisorError):
            await qmp.execute("netdev_del", {"id": device.id})
        raise
