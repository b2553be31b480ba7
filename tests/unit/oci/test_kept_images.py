"""Unpacked images: listed, and removed where nobody uses them."""

import fcntl
import os
from pathlib import Path

from kata_runtime.oci.image import Image, ImageConfig, hold, kept_images, prune


def unpacked(cache: Path, digest: str) -> Image:
    (cache / digest / "rootfs").mkdir(parents=True)
    (cache / digest / "rootfs/file").write_text("x")
    (cache / digest / "image.json").write_text("{}")
    return Image(digest, cache / digest / "rootfs", ImageConfig())


def test_what_is_used_stays(tmp_path: Path) -> None:
    used, free = unpacked(tmp_path, "sha256-a"), unpacked(tmp_path, "sha256-b")
    (tmp_path / ".new-x").mkdir()
    descriptor = os.open(used.rootfs.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert {(kept.digest, kept.used) for kept in kept_images(tmp_path)} == {("sha256-a", True), ("sha256-b", False)}
    assert prune(tmp_path) == ["sha256-b"]
    assert used.rootfs.exists()
    assert hold(free) is None
    os.close(descriptor)
    assert prune(tmp_path) == ["sha256-a"]
    assert [path.name for path in tmp_path.iterdir()] == [".new-x"]


def test_who_holds_one_keeps_it(tmp_path: Path) -> None:
    image = unpacked(tmp_path, "sha256-a")
    one, other = hold(image), hold(image)
    assert one is not None
    assert other is not None
    os.close(one)
    assert prune(tmp_path) == []
    os.close(other)
    assert prune(tmp_path) == ["sha256-a"]
    assert hold(image) is None
