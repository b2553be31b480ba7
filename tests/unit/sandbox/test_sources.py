"""Paths of the host where a guest writes: what is opened, and where."""

import os
from pathlib import Path

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.sandbox.sources import identity, open_source


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A volume that a guest writes, beside what is the host's."""
    (tmp_path / "host/deep").mkdir(parents=True)
    (tmp_path / "host/file").touch()
    (tmp_path / "volume/sub").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("host/../host")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative/deep")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-volume").symlink_to(tmp_path / "volume")
    (tmp_path / "volume/out").symlink_to(tmp_path / "host")
    (tmp_path / "volume/within").symlink_to("sub")
    (tmp_path / "volume/back").symlink_to(tmp_path / "to-volume/sub")
    (tmp_path / "volume/up").symlink_to("sub/../../host")
    (tmp_path / "volume/around").symlink_to("out/../host")
    return tmp_path


def leads(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def opened(tree: Path, path: str) -> str:
    """Where `path` of the host leads."""
    volume = os.open(tree / "volume", os.O_PATH)
    try:
        descriptor = open_source(tree / path, {identity(volume)})
        found = os.path.relpath(leads(descriptor), tree)
        os.close(descriptor)
        return found
    finally:
        os.close(volume)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("host", "host"),
        ("host/file", "host/file"),
        ("relative/file", "host/file"),
        ("absolute", "host/deep"),
        ("absolute/../file", "host/file"),
        ("volume/sub", "volume/sub"),
        ("to-volume/sub", "volume/sub"),
        ("to-volume", "volume"),
        ("volume/within", "volume/sub"),
        ("volume/back", "volume/sub"),  # what a guest can write anyway
    ],
)
def test_sources_of_mounts(tree: Path, path: str, where: str) -> None:
    assert opened(tree, path) == where


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing", "which is not there"),
        ("host/file/x", "which is not there"),
        ("loop", "Too many levels of symbolic links"),
        ("volume/out", "which a symlink leads out"),
        ("volume/out/deep", "which a symlink leads out"),
        ("volume/up", "which a symlink leads out"),
        ("volume/around", "which a symlink leads out"),
        ("to-volume/out", "which a symlink leads out"),
        ("volume/sub/../out", "which a symlink leads out"),
    ],
)
def test_sources_that_are_refused(tree: Path, path: str, why: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RootfsError, match=why):
        opened(tree, path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_symlink_of_the_kernels_own(tree: Path) -> None:
    """/proc/1/root is more than the text "/"."""
    here = os.open(tree / "host", os.O_PATH)
    try:
        descriptor = open_source(Path(f"/proc/self/fd/{here}/deep"), set())
        assert leads(descriptor) == str(tree / "host/deep")
        os.close(descriptor)
    finally:
        os.close(here)
