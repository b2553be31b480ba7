"""The root file system's image, by e2fsprogs' own tools."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kata_runtime.image import ext4

pytestmark = pytest.mark.skipif(shutil.which("debugfs", path="/usr/sbin:/sbin") is None, reason="no e2fsprogs")


def _tree(root: Path) -> Path:
    (root / "usr").mkdir(parents=True)
    (root / "usr/program").write_bytes(b"x" * 100_000)
    (root / "link").symlink_to("usr/program")
    for path in [*root.rglob("*"), root]:
        os.utime(path, (1, 1), follow_symlinks=False)
    return root


def test_the_same_tree_made_twice_gives_the_same_image(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ext4.make(_tree(tmp_path / name), tmp_path / f"{name}.img", 1)
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()


def test_the_image_is_sound_and_has_one_time(tmp_path: Path) -> None:
    image = tmp_path / "image"
    ext4.make(_tree(tmp_path / "root"), image, 1)
    subprocess.run(["/sbin/e2fsck", "-fn", image], check=True, capture_output=True)
    told = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "stat /usr/program", image],
        check=True,
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "PAGER": "cat"},
    ).stdout
    times = [line for line in told.splitlines() if "time:" in line]
    assert len(times) == 4
    assert all("0x00000001:00000000" in line for line in times)
    assert "Size: 100000" in told
