"""Devices that come while a VM runs, with QEMU itself; its machine never starts, so there is no guest."""

import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.cage import Cage
from kata_runtime.errors import HypervisorError, QmpError
from kata_runtime.hypervisor.machine import Disk, MachineSpec, NetDevice, VhostUserFs, Vsock
from kata_runtime.hypervisor.qemu.accelerator import Accelerator
from kata_runtime.hypervisor.qemu.argv import hotplug_ports, to_argv
from kata_runtime.hypervisor.qemu.disks import Disks
from kata_runtime.hypervisor.qemu.hotplug import add_device
from kata_runtime.hypervisor.qemu.qmp import Qmp, Transcript
from kata_runtime.hypervisor.qemu.resize import Resizer
from kata_runtime.hypervisor.qemu.spec import HOTPLUG_PORTS, Channels, QemuSpec
from kata_runtime.hypervisor.virtiofsd import start_virtiofsd
from kata_runtime.hypervisor.vsock.backend import GUEST_CID, start_vsock_backend
from kata_runtime.process import launch
from kata_runtime.sandbox.network.network import Network
from support.netns import made

QEMU = shutil.which("qemu-system-x86_64") or ""
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not QEMU, reason="needs root and QEMU"),
    pytest.mark.slow,
]


@asynccontextmanager
async def stopped_vm(
    directory: Path, devices: tuple[NetDevice, ...] = (), namespace: str = "", **larger: int
) -> AsyncIterator[Qmp]:
    """Our machine, before its first instruction."""
    for name in ("kernel", "initrd", "image"):
        (directory / name).write_bytes(bytes(512))
    ends = [socket.socketpair() for _ in range(3)]
    with ExitStack() as stack:
        for pair in ends:
            for end in pair:
                stack.enter_context(end)
        fds = [theirs.fileno() for _, theirs in ends]
        machine = MachineSpec(
            name="hotplug",
            kernel=directory / "kernel",
            initrd=directory / "initrd",
            image=directory / "image",
            memory=64,
            vcpus=1,
            devices=devices,
            hotplug=True,
            **larger,
        )
        spec = QemuSpec(machine, program=QEMU, accelerator=Accelerator.TCG, seccomp="on")
        argv = to_argv(spec, Channels(*fds))
        # There is nothing to boot.
        for option in ("-kernel", "-initrd", "-append"):
            del argv[argv.index(option) : argv.index(option) + 2]
        taps = [device.tap_fd for device in devices]
        ours = ends[0][0]
        ours.setblocking(False)
        async with launch([*argv, "-S"], pass_fds=[*fds, *taps], cage=Cage(network=namespace), grace=0) as child:
            for _, theirs in ends:
                theirs.close()
            try:
                async with Qmp.connected(ours, name="hotplug", transcript=Transcript(), timeout=30) as qmp:
                    yield qmp
            except BaseException as error:
                error.add_note(child.output)
                raise


async def cards(qmp: Qmp) -> dict[str, str]:
    """MAC addresses of the machine's network devices, by the id of the device."""
    found = {}
    listed: Any = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    for entry in listed:
        if entry["type"] == "child<virtio-net-pci>":
            where = {"path": f"/machine/peripheral/{entry['name']}", "property": "mac"}
            found[entry["name"]] = str(await qmp.execute("qom-get", where))
    return found


async def test_network_devices_cold_and_hot(tmp_path: Path) -> None:
    with made() as (pod,), ExitStack() as stack:
        for number in range(3):
            pod.ip(f"link add eth{number} address 0a:58:00:00:00:0{number} type veth peer name peer{number}")
            pod.ip(f"addr add 10.{number}.0.2/24 dev eth{number}")
        async with Network.opened(str(pod.path), tmp_path / "record") as network:
            cold, *hot = network.devices(stack, vhost=False)
            async with stopped_vm(tmp_path, (cold,), network.namespace) as qmp:
                assert await cards(qmp) == {"network-0-device": "0a:58:00:00:00:00"}
                for device, port in zip(hot, hotplug_ports(), strict=False):
                    await add_device(qmp, device, port)
                assert await cards(qmp) == {f"network-{n}-device": f"0a:58:00:00:00:0{n}" for n in range(3)}
                # QEMU's own words say what was wrong, and nothing of it is left to be in the way.
                later = NetDevice("network-9", "0a:58:00:00:00:09", os.dup(hot[0].tap_fd))
                stack.callback(os.close, later.tap_fd)
                with pytest.raises(QmpError, match=r"QEMU refused device_add: Bus 'nowhere' not found"):
                    await add_device(qmp, later, "nowhere")
                await add_device(qmp, later, hotplug_ports()[2])
                assert len(await cards(qmp)) == 4
        stack.close()
        assert pod.traces() == []


async def test_vsock_and_a_shared_directory_come_to_a_running_machine(tmp_path: Path) -> None:
    """What a clone of a template gets; the helpers are the real ones."""
    shared = tmp_path / "shared"
    shared.mkdir()
    virtiofsd = start_virtiofsd("", shared, tmp_path / "virtiofs.sock", cache="auto")
    async with (
        start_vsock_backend(tmp_path, privileges=None) as backend,
        virtiofsd as (_, directory, _),
        stopped_vm(tmp_path) as qmp,
    ):
        vsock, fs = Vsock(GUEST_CID, chardev_fd=backend.chardev.fileno()), VhostUserFs(directory.fileno(), "tag")
        with pytest.raises(QmpError, match="Bus 'nowhere' not found"):
            await add_device(qmp, vsock, "nowhere")
        devices: tuple[Vsock | VhostUserFs, ...] = (vsock, fs)
        for device, port in zip(devices, hotplug_ports(), strict=False):
            await add_device(qmp, device, port)
        # QEMU has its own copies.
        backend.chardev.close()
        directory.close()
        listed: Any = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
        kinds = {entry["name"]: entry["type"] for entry in listed}
        assert kinds["vsock-device"] == "child<vhost-user-vsock-pci>"
        assert kinds["shared-device"] == "child<vhost-user-fs-pci>"


async def test_as_many_ports_as_promised(tmp_path: Path) -> None:
    async with stopped_vm(tmp_path) as qmp:
        listed: Any = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
        ports = {entry["name"] for entry in listed if entry["type"] == "child<pcie-root-port>"}
        assert ports == set(hotplug_ports())
        assert len(ports) == HOTPLUG_PORTS


async def peripherals(qmp: Qmp) -> dict[str, str]:
    listed: Any = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    return {entry["name"]: entry["type"].removeprefix("child<").removesuffix(">") for entry in listed}


async def block_nodes(qmp: Qmp) -> set[str]:
    listed: Any = await qmp.execute("query-named-block-nodes", {"flat": True})
    return {entry["node-name"] for entry in listed if not entry["node-name"].startswith("#")}


@pytest.mark.parametrize("driver", ["virtio-scsi", "virtio-blk"])
async def test_disks_by_descriptor(tmp_path: Path, driver: str) -> None:
    """What is passed is an open file: QEMU looks for no path."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    free = ["port-0", "port-1"]
    async with stopped_vm(tmp_path) as qmp:
        disks = Disks(qmp, lambda _: free.pop(0), free.append)
        before = await block_nodes(qmp)
        with image.open("r+b") as file:
            disk = await disks.add(Disk("kata-disk-0", file.fileno(), driver))
            image.unlink()
        kinds = await peripherals(qmp)
        assert kinds["kata-disk-0-device"] == ("scsi-hd" if driver == "virtio-scsi" else "virtio-blk-pci")
        assert await block_nodes(qmp) == before | {"kata-disk-0"}
        assert free == ["port-1"]
        # Only to be read, by a descriptor that can't be written.
        other = tmp_path / "other"
        other.write_bytes(bytes(1 << 20))
        with other.open("rb") as file:
            with pytest.raises(QmpError):
                await disks.add(Disk("kata-disk-1", file.fileno(), driver))
            assert await block_nodes(qmp) == before | {"kata-disk-0"}
            if driver == "virtio-scsi":
                read = await disks.add(Disk("kata-disk-1", file.fileno(), driver, readonly=True))
                await read.remove()
        await disk.grow(2 << 20)
        if driver == "virtio-scsi":
            # A controller asks nobody.
            await disk.remove()
            assert await block_nodes(qmp) == before


async def test_places_for_cpus_and_memory(tmp_path: Path) -> None:
    """QEMU's own word: what was asked for is there, and what can't be is refused before QEMU is asked."""
    async with stopped_vm(tmp_path, max_vcpus=3, max_memory=1024) as qmp:
        machine = MachineSpec(
            name="a", kernel=tmp_path, initrd=tmp_path, image=tmp_path, memory=64, vcpus=1, max_vcpus=3, max_memory=1024
        )
        told: list[tuple[int, bool]] = []

        async def online(cpus: int, memory: bool) -> None:
            told.append((cpus, memory))

        resizer = Resizer(qmp, machine, lambda _: "port-0")
        assert await resizer.resize(3, 64, online) == (3, 64)
        assert told == [(2, False)]
        for vcpus, memory in ((4, 64), (3, 64 + 1025)):
            with pytest.raises(HypervisorError, match="the VM can't have"):
                await resizer.resize(vcpus, memory, online)
        assert len(told) == 1
