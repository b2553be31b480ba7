"""Devices that come while the guest runs, by QMP."""

import asyncio
from contextlib import suppress
from typing import Final

from kata_runtime.errors import HypervisorError, QmpError
from kata_runtime.hypervisor.machine import NetDevice, VhostUserFs, Vsock
from kata_runtime.hypervisor.qemu.qmp import Qmp

__all__ = ["add_device", "await_removal", "remove_device"]

# Of the removal of a character device: how often, and every how many seconds.
_TRIES: Final = 200
_PAUSE: Final = 0.01


async def add_device(qmp: Qmp, device: Vsock | VhostUserFs | NetDevice, port: str) -> None:
    """Plug a device into a free port. Its file descriptors stay the caller's.

    Raises:
        HypervisorError: QEMU refused; what had been done is undone.
    """
    match device:
        case NetDevice():
            await _add_network(qmp, device, port)
        case VhostUserFs():
            fs = {"driver": "vhost-user-fs-pci", "tag": device.tag, "queue-size": device.queue_size}
            await _add_vhost_user(qmp, device.id, device.chardev_fd, {**fs, "bus": port})
        case Vsock() if device.vhost_fd >= 0:
            await _add_vhost_vsock(qmp, device, port)
        case Vsock():
            await _add_vhost_user(qmp, device.id, device.chardev_fd, {"driver": "vhost-user-vsock-pci", "bus": port})


async def _add_network(qmp: Qmp, device: NetDevice, port: str) -> None:
    backend: dict[str, object] = {"type": "tap", "id": device.id}
    fds = {option: fd for option, fd in (("fd", device.tap_fd), ("vhostfd", device.vhost_fd)) if fd >= 0}
    backend |= {option: f"{device.id}-{option}" for option in fds}
    if device.vhost_fd >= 0:
        backend["vhost"] = True
    await _with_fds(qmp, {str(backend[option]): fd for option, fd in fds.items()}, "netdev_add", backend)
    front = {"driver": "virtio-net-pci", "id": f"{device.id}-device", "netdev": device.id, "mac": device.mac}
    try:
        await qmp.execute("device_add", {**front, "bus": port, "romfile": ""})
    except BaseException:
        with suppress(HypervisorError):
            await qmp.execute("netdev_del", {"id": device.id})
        raise


async def _add_vhost_user(qmp: Qmp, name: str, fd: int, front: dict[str, object]) -> None:
    passed = f"{name}-fd"
    address = {"type": "fd", "data": {"str": passed}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    await _with_fds(qmp, {passed: fd}, "chardev-add", {"id": name, "backend": backend})
    try:
        await qmp.execute("device_add", {"id": f"{name}-device", "chardev": name, **front})
    except BaseException:
        with suppress(HypervisorError):
            await qmp.execute("chardev-remove", {"id": name})
        raise


async def _add_vhost_vsock(qmp: Qmp, device: Vsock, port: str) -> None:
    passed = f"{device.id}-fd"
    front = {"driver": "vhost-vsock-pci", "id": f"{device.id}-device", "guest-cid": device.cid, "vhostfd": passed}
    await _with_fds(qmp, {passed: device.vhost_fd}, "device_add", {**front, "bus": port})


async def _with_fds(qmp: Qmp, fds: dict[str, int], command: str, arguments: dict[str, object]) -> None:
    """Run a command that takes file descriptors by these names; QEMU forgets them where it fails."""
    sent: list[str] = []
    try:
        for name, fd in fds.items():
            await qmp.send_fd(name, fd)
            sent.append(name)
        await qmp.execute(command, arguments)
    except BaseException:
        for name in sent:
            with suppress(HypervisorError):
                await qmp.execute("closefd", {"fdname": name})
        raise


async def await_removal(qmp: Qmp, device: str, name: str, *, timeout: float = 20.0) -> None:
    """Unplug a device of QEMU's, called `name` in errors, within `timeout` seconds.

    Raises:
        HypervisorError: QEMU refused, or the guest keeps it.
    """
    with qmp.expecting("DEVICE_DELETED", lambda data: data.get("device") == device) as gone:
        await qmp.execute("device_del", {"id": device})
        try:
            async with asyncio.timeout(timeout):
                await gone
        except TimeoutError:
            raise HypervisorError(f"the guest keeps its device {name}") from None


async def remove_device(qmp: Qmp, name: str, *, timeout: float = 20.0) -> None:
    """Unplug the device `name`, and what stands behind it, within `timeout` seconds.

    Raises:
        HypervisorError: QEMU refused, or the guest keeps it.
    """
    await await_removal(qmp, f"{name}-device", name, timeout=timeout)
    for _ in range(_TRIES):
        try:
            await qmp.execute("chardev-remove", {"id": name})
        except QmpError as error:
            if "not found" in error.description:
                return  # the kernel's vsock has none
            # QEMU lets go of it a moment after it has told of the device's end, and nothing tells when.
            await asyncio.sleep(_PAUSE)
        else:
            return
    raise HypervisorError(f"QEMU keeps what stands behind {name}")
