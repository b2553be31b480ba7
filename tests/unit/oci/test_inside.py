"""What is made and read in a root file system that somebody else writes."""

import os
from pathlib import Path

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.oci.inside import make_inside, read_inside


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("/a/b/c", "a/b/c"),
        ("a//./b", "a/b"),
        ("/there/x", "there/x"),
        ("/up/x", "top/x"),  # a symlink above the root ends at the root
        ("/away/x", "nowhere/else/x"),  # an absolute one is from the root
        ("/near/x", "there/new/x"),
        ("/../../x", "x"),
    ],
)
@pytest.mark.parametrize("directory", [True, False])
def test_what_is_made_in_a_root_file_system(tmp_path: Path, path: str, made: str, directory: bool) -> None:
    root = tmp_path / "x/y/root"
    (root / "there").mkdir(parents=True)
    (root / "up").symlink_to("../../../top")
    (root / "away").symlink_to("/nowhere/else")
    (root / "near").symlink_to("there/new")
    descriptor = os.open(root, os.O_PATH)
    try:
        for _ in range(2):  # what is there stays
            make_inside(descriptor, path, directory=directory)
    finally:
        os.close(descriptor)
    assert (root / made).is_dir() if directory else (root / made).is_file()
    assert [name.name for name in tmp_path.iterdir()] == ["x"]
    assert [name.name for name in (tmp_path / "x/y").iterdir()] == ["root"]


@pytest.mark.parametrize("path", ["/file/x", "/loop/x", "/one/x"])
def test_what_cannot_be_made(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("stays")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            make_inside(descriptor, path, directory=True)
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_text() == "stays"


def test_a_device_is_not_opened_to_see_what_it_is() -> None:
    """To open one can be to do something to it, as to start a watchdog."""
    with pytest.raises(RootfsError, match="is not a regular file"):
        read_inside(Path("/dev"), "/null", 100)
    assert read_inside(Path("/dev"), "/there-is-no-such-file", 100) is None
