"""Block devices of the host in a guest: what is asked for, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.errors import HypervisorError, RootfsError, SandboxError
from kata_runtime.hypervisor.fake import FakeMachine
from kata_runtime.hypervisor.machine import Disk, MachineSpec
from kata_runtime.mount import Mount
from kata_runtime.oci.disks import DiskNode, disk_nodes, mounts_as_devices, others
from kata_runtime.sandbox import direct_volumes
from kata_runtime.sandbox.direct_volumes import DirectVolume
from kata_runtime.sandbox.disks import DiskSource, SandboxDisks, root_disk

SPEC = MachineSpec(name="a", kernel=Path(), initrd=Path(), image=Path(), memory=64, vcpus=1, hotplug=True)
ALLOWED = {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "rwm"}


@pytest.mark.parametrize(
    ("rules", "access"),
    [
        ([], ""),
        ([{"allow": False, "access": "rwm"}, ALLOWED], "rwm"),
        ([ALLOWED, {"allow": False, "access": "rwm"}], ""),
        ([{**ALLOWED, "access": "r"}], "r"),
        ([ALLOWED, {**ALLOWED, "allow": False, "access": "w"}], "rm"),
        ([{**ALLOWED, "minor": 17}], ""),
        ([{**ALLOWED, "type": "c"}], ""),
        ([{**ALLOWED, "minor": None, "major": -1}], "rwm"),
        ([{"allow": True, "access": "rwm"}], "rwm"),
    ],
)
def test_what_a_container_may_do_with_a_device(rules: list[dict[str, Any]], access: str) -> None:
    device = {"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16, "fileMode": 0o640, "gid": 6}
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    nodes, notes = disk_nodes([null, device], rules)
    if access:
        assert nodes == [DiskNode("/dev/xvda", 8, 16, access, 0o640, 0, 6)]
        assert nodes[0].readonly is ("w" not in access)
        assert notes == []
    else:
        assert nodes == []
        assert "linux.devices[1]: no rule of linux.resources.devices lets it use /dev/xvda" in notes[0]
    assert others([{"allow": False, "access": "rwm"}, ALLOWED], nodes or [DiskNode("", 8, 16, "r")]) == [
        {"allow": False, "access": "rwm"}
    ]


def test_what_is_no_block_device_stays_a_mount(tmp_path: Path) -> None:
    spec = {"mounts": [{"destination": "/a", "type": "bind", "source": str(tmp_path)}, {"destination": "/proc"}]}
    assert mounts_as_devices(spec) == spec


async def test_one_device_is_plugged_in_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    machine = FakeMachine(SPEC, places=2)
    disks = SandboxDisks(machine, "virtio-scsi", "box")
    source = DiskSource("a", str(image))
    async with disks.attached(source) as one, disks.attached(source) as two:
        assert one is two
        assert [device.id for device in machine.devices] == [one.serial]
        (disk,) = machine.devices
        assert isinstance(disk, Disk)
        assert (disk.driver, disk.readonly, one.storage_driver) == ("virtio-scsi", False, "scsi")
        with disks.holding("/v", one, "/guest/v"):
            assert disks.place_of("/v") == "/guest/v"
            await disks.grow("/v", 8192)
        with pytest.raises(SandboxError, match="no container of this sandbox has the volume /v"):
            disks.place_of("/v")
    assert machine.devices == []
    async with disks.attached(DiskSource("a", str(image), readonly=True)):
        with pytest.raises(RootfsError, match="a: another container of the sandbox has it read-only"):
            async with disks.attached(source):
                pass
    other = tmp_path / "other"
    other.write_bytes(bytes(4096))
    third = tmp_path / "third"
    third.write_bytes(bytes(4096))
    async with disks.attached(source), disks.attached(DiskSource("b", str(other))):
        with pytest.raises(HypervisorError, match="c can't be given to the guest: the VM has no place for kata-disk-"):
            async with disks.attached(DiskSource("c", str(third))):
                pass


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (DiskSource("x", "/nowhere"), "x: /nowhere can't be given to the guest: No such file"),
        (DiskSource("x", "/dev/null"), "x: /dev/null is no block device"),
        (DiskSource("x", numbers=(4095, 1)), "x: the host has no block device 4095:1"),
        (DiskSource("x", "/proc", readonly=True), "x: /proc is no block device"),
    ],
)
def test_what_can_t_be_given_is_named(source: DiskSource, said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        source.open()
    assert said in str(caught.value)


def test_a_root_file_system_that_is_a_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    found = root_disk([Mount("ext4", str(image), ("loop", "rw", "discard"))], "/r")
    assert found is not None
    assert (found.source.path, found.kind, found.options, found.point) == (str(image), "ext4", ("rw", "discard"), "/r")
    readonly = root_disk([Mount("xfs", str(image), ("ro",))], "/r")
    assert readonly is not None
    assert readonly.source.readonly
    for mounts in (
        [],
        [Mount("overlay", "overlay")],
        [Mount("ext4", str(tmp_path))],
        [Mount("ext4", str(tmp_path / "none"))],
        [Mount("ext4", str(image)), Mount("ext4", str(image))],
    ):
        assert root_disk(mounts, "/r") is None


INFO = {"volume-type": "directvol", "device": "/dev/sdx", "fstype": "ext4", "metadata": {}, "options": ["noatime"]}


def test_a_direct_volume(tmp_path: Path) -> None:
    assert direct_volumes.find("/v/one", tmp_path) is None
    direct_volumes.add("/v/one", json.dumps(INFO), tmp_path)
    assert (tmp_path / "L3Yvb25l" / "mountInfo.json").is_file()
    assert direct_volumes.find("/v/one", tmp_path) == DirectVolume("/v/one", "/dev/sdx", "ext4", ("noatime",))
    with pytest.raises(RootfsError, match="no sandbox has the volume /v/one"):
        direct_volumes.sandbox_of("/v/one", tmp_path)
    direct_volumes.record("/v/one", "box", tmp_path)
    assert direct_volumes.sandbox_of("/v/one", tmp_path) == "box"
    direct_volumes.remove("/v/one", tmp_path)
    direct_volumes.remove("/v/one", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert direct_volumes.find("/" + "x" * 300, tmp_path) is None


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ("{", "--mount-info: no JSON"),
        ("[]", "expected an object"),
        ({**INFO, "device": "sdx"}, "expected an object with the absolute path of a block device"),
        ({**INFO, "fstype": "ntfs"}, "fstype 'ntfs' can't be mounted by the guest"),
        ({**INFO, "volume-type": "spdkvol"}, "volume-type 'spdkvol' can't be had"),
        ({**INFO, "metadata": {"fsGroup": "5"}}, "metadata.fsGroup can't be had"),
        ({**INFO, "options": "ro"}, "options is no list of strings"),
        ({**INFO, "colour": 1}, "'colour' is unknown"),
    ],
)
def test_what_is_said_of_a_direct_volume_wrongly(info: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(RootfsError) as caught:
        direct_volumes.add("/v", info if isinstance(info, str) else json.dumps(info), tmp_path)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []
