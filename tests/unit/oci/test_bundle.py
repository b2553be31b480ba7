"""Bundles that others made: read, or refused with the field that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.oci.bundle import read_bundle
from kata_runtime.oci.spec import for_guest


def write(directory: Path, **changes: Any) -> Path:
    (directory / "rootfs").mkdir(exist_ok=True)
    spec = {"process": {"args": ["sh"], "cwd": "/"}, "root": {"path": "rootfs"}, **changes}
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def test_smallest(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path))
    assert bundle.rootfs == tmp_path / "rootfs"
    assert for_guest(bundle.spec, rootfs="/r", mounts="/m").spec["process"]["args"] == ["sh"]


def test_null_means_absent(tmp_path: Path) -> None:
    nothing = {"mounts": None, "linux": None, "hooks": None, "hostname": None}
    process = {"args": ["sh"], "cwd": "/", "env": None, "user": None, "rlimits": None}
    bundle = read_bundle(write(tmp_path, **nothing, process=process))
    assert for_guest(bundle.spec, rootfs="/r", mounts="/m").mounts == ()


def test_root_may_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").mkdir()
    assert (
        read_bundle(write(tmp_path / "b", root={"path": str(tmp_path / "elsewhere")})).rootfs == tmp_path / "elsewhere"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"process": None}, "process: is missing"),
        ({"process": []}, "process: expected an object"),
        ({"process": {"args": [], "cwd": "/"}}, "process.args: there is no command"),
        ({"process": {"args": ["a", 3], "cwd": "/"}}, "process.args[1]: expected a string"),
        ({"process": {"args": "sh", "cwd": "/"}}, "process.args: expected a list"),
        ({"process": {"args": ["sh"], "cwd": "tmp"}}, "process.cwd: expected an absolute path"),
        ({"process": {"args": ["sh"], "cwd": "/", "user": {"uid": True}}}, "process.user.uid: expected an integer"),
        (
            {"process": {"args": ["sh"], "cwd": "/", "rlimits": [{"type": "x", "soft": 1}]}},
            "rlimits[0].hard: is missing",
        ),
        ({"root": {}}, "root.path: is missing"),
        ({"root": {"path": "nowhere"}}, "root.path: "),
        ({"mounts": [{"destination": "relative"}]}, "mounts[0].destination: expected an absolute path"),
        ({"mounts": {"a": 1}}, "mounts: expected a list"),
        ({"linux": {"namespaces": [{}]}}, "linux.namespaces[0].type: is missing"),
        ({"hooks": []}, "hooks: expected an object"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        read_bundle(write(tmp_path, **changes))
    assert str(caught.value).startswith(f"{tmp_path}/config.json: {said}") or said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[]", "the whole: expected an object"),
        ("[" * 100_000, "is not JSON"),
        (" " * (8 << 20) + "{}", "longer"),
    ],
)
def test_no_specification(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RootfsError, match=said):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", ["", "missing", "file"])
def test_no_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RootfsError, match="is not an OCI bundle") as caught:
        read_bundle(tmp_path / name)
    assert "--rootfs" in caught.value.hint


def test_the_place_of_a_root_filesystem_that_is_mounted_yet_is_made(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "rootfs").rmdir()
    with pytest.raises(RootfsError, match="is not a directory"):
        read_bundle(tmp_path)
    assert read_bundle(tmp_path, mounted=True).rootfs.is_dir()
    assert read_bundle(tmp_path, mounted=True).rootfs.stat().st_mode & 0o777 == 0o711
