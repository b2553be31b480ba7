"""Block devices of the host in a real guest: a root file system, a raw volume, a direct volume that grows."""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.types_pb2 import Mount
from kata_runtime.cli.main import main
from kata_runtime.sandbox import direct_volumes
from kata_runtime.shim.ttrpc.errors import RpcError
from support.shim_process import Shim, running_shim

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
async def shim(guest_image: None, artifacts: Path) -> AsyncIterator[Shim]:
    async with running_shim() as shim:
        await shim.create()
        await shim.boot()
        yield shim
        await shim.shutdown()


def file_system(path: Path, content: Path, size: int = 16) -> Path:
    """An image (MiB) with these files."""
    path.write_bytes(b"")
    os.truncate(path, size * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(content), str(path)], check=True)
    return path


def content_of(image: Path, name: str) -> str:
    """A file of an image, without mounting it."""
    done = subprocess.run(["debugfs", "-R", f"cat {name}", str(image)], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def loop() -> Iterator[Callable[[Path], str]]:
    """Gives files a loop device."""
    made: list[str] = []

    def attach(path: Path) -> str:
        done = subprocess.run(["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True)
        made.append(done.stdout.strip())
        return made[-1]

    yield attach
    for device in made:
        subprocess.run(["losetup", "--detach", device], check=True)


def grown(device: str) -> None:
    """A loop device has the size that its file has now."""
    subprocess.run(["losetup", "--set-capacity", device], check=True)


async def ended(shim: Shim, name: str) -> None:
    answer = await shim.task("Wait", task.WaitRequest(id=name), task.WaitResponse)
    assert answer.exit_status == 0
    await shim.task("Delete", task.DeleteRequest(id=name), task.DeleteResponse)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with a shell."""
    files = tmp_path / "files"
    (files / "bin").mkdir(parents=True)
    shutil.copy2(shutil.which("busybox") or "busybox", files / "bin/busybox")
    (files / "data").mkdir()
    for name in ("sh", "cat", "dd", "ls", "grep", "sync", "sleep"):
        (files / "bin" / name).symlink_to("busybox")
    return file_system(tmp_path / "root.img", files)


async def test_a_root_file_system_in_an_image(shim: Shim, root: Path) -> None:
    """As the blockfile snapshotter gives it."""
    mount = Mount(type="ext4", source=str(root), options=["loop", "rw"])
    output = await shim.run("one", "grep ' / ' /proc/mounts; echo written >/here", rootfs=[mount])
    await ended(shim, "one")
    assert " / ext4 rw" in output.read_text()
    # The guest has let go of it.
    assert content_of(root, "/here") == "written\n"
    # The same device again, and what is there is what was.
    output = await shim.run("two", "cat /here", rootfs=[mount])
    await ended(shim, "two")
    assert output.read_text() == "written\n"


async def test_a_raw_volume(shim: Shim, root: Path, tmp_path: Path, loop: Callable[[Path], str]) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"from the host".ljust(4 * MIB, b"\0"))
    status = os.stat(loop(disk))  # noqa: PTH116
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    device = {"path": "/dev/xvda", "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "gid": 6}
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"}
    linux: dict[str, Any] = {"devices": [device], "resources": {"devices": [{"allow": False, "access": "rwm"}, rule]}}
    mount = Mount(type="ext4", source=str(root))
    script = "ls -ln /dev/xvda; dd if=/dev/xvda bs=13 count=1 2>/dev/null; echo"
    script += "; echo from the guest | dd of=/dev/xvda bs=1 seek=4096 conv=fsync 2>/dev/null"
    output = await shim.run("raw", script, linux=linux, rootfs=[mount])
    await ended(shim, "raw")
    lines = output.read_text().splitlines()
    assert lines[0].startswith("brw-r-----")
    assert lines[1] == "from the host"
    assert disk.read_bytes()[4096:4110] == b"from the guest"
    # Only to be read.
    rule["access"] = "r"
    script = "echo no >/dev/xvda || echo refused; dd if=/dev/xvda bs=13 count=1 2>/dev/null"
    output = await shim.run("read", script, linux=linux, rootfs=[mount])
    await ended(shim, "read")
    assert output.read_text().splitlines()[-2:] == ["refused", "from the host"]


async def test_a_device_that_is_not_there_is_named(shim: Shim) -> None:
    device = {"path": "/dev/xvda", "type": "b", "major": 4095, "minor": 7}
    linux = {"devices": [device], "resources": {"devices": [{"allow": True, "access": "rwm"}]}}
    with pytest.raises(RpcError, match=r"linux\.devices: /dev/xvda: the host has no block device 4095:7"):
        await shim.run("none", "true", linux=linux)


async def test_a_direct_volume_that_grows(
    shim: Shim, root: Path, tmp_path: Path, loop: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "volume"
    files.mkdir()
    (files / "there").write_text("before\n")
    image = file_system(tmp_path / "volume.img", files, size=16)
    device, volume = loop(image), tmp_path / "published"
    volume.mkdir()
    named = ("--volume-path", str(volume))
    info = json.dumps({"volume-type": "directvol", "device": device, "fstype": "ext4", "options": ["noatime"]})
    assert main(["direct-volume", "add", *named, "--mount-info", info]) == 0
    try:
        assert main(["direct-volume", "stats", *named]) != 0
        mount = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]}
        script = "cat /data/there; grep /data /proc/mounts; echo more >/data/new; sync; sleep 1000"
        disk = Mount(type="ext4", source=str(root))
        output = await shim.run("direct", script, mounts=[mount], rootfs=[disk])
        capsys.readouterr()
        assert main(["direct-volume", "stats", *named]) == 0
        before = json.loads(capsys.readouterr().out)["usage"]
        assert [usage["unit"] for usage in before] == ["BYTES", "INODES"]
        assert 8 * MIB < before[0]["total"] <= 16 * MIB
        os.truncate(image, 64 * MIB)
        grown(device)
        assert main(["direct-volume", "resize", *named, "--size", str(64 * MIB)]) == 0
        capsys.readouterr()
        assert main(["direct-volume", "stats", *named]) == 0
        after = json.loads(capsys.readouterr().out)["usage"]
        assert 48 * MIB < after[0]["total"] <= 64 * MIB
        assert main(["direct-volume", "resize", *named, "--size", str(256 * MIB)]) != 0
        await shim.task("Kill", task.KillRequest(id="direct", signal=9), Empty)
        await shim.task("Wait", task.WaitRequest(id="direct"), task.WaitResponse)
        await shim.task("Delete", task.DeleteRequest(id="direct"), task.DeleteResponse)
        said = output.read_text()
        assert said.startswith("before\n")
        assert " /data ext4 rw,noatime" in said
    finally:
        assert main(["direct-volume", "remove", *named]) == 0
    assert not direct_volumes.home_of(str(volume)).exists()
    assert content_of(image, "/new") == "more\n"
