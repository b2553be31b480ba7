import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata_common.removal import remove_tree

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")


def nest(directory: Path, depth: int, name: str = "d") -> None:
    """Directories in each other, made as a workload does: step by step."""
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)


@contextmanager
def few_descriptors(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, for trees that a busy disk takes a minute for."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    remove_tree(directory)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "name"), [(1200, "d"), (100, "x" * 255), (100_000, "d")])
def test_however_deep(memory: Path, depth: int, name: str) -> None:
    nest(memory, depth, name)
    with few_descriptors(len(list(Path("/proc/self/fd").iterdir())) + 8):
        assert not remove_tree(memory)
    assert not memory.exists()


@pytest.mark.slow
def test_however_wide(memory: Path) -> None:
    here = os.open(memory, os.O_RDONLY)
    for number in range(5_000):
        os.close(os.open(f"file{number}", os.O_CREAT, dir_fd=here))
        os.mkdir(f"dir{number}", dir_fd=here)
        if number % 4 == 0:
            os.mkdir(f"dir{number}/in it", dir_fd=here)
    os.close(here)
    assert not remove_tree(memory)
    assert not memory.exists()


def test_whatever_there_is(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(precious)
    (tree / "broken").symlink_to("nowhere")
    (tree / "hard").hardlink_to(precious / "file")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    (tree / os.fsdecode(b"not \xff\xfe UTF-8")).mkdir()
    os.close(os.open(os.fsencode(tree) + b"/not \xff\xfe UTF-8/\x1b[31m\n", os.O_CREAT))
    (tree / "sticky").mkdir()
    (tree / "sticky").chmod(0o1777)
    (tree / "sticky" / "file").touch()
    (tree / "closed").mkdir()
    (tree / "closed" / "file").touch()
    (tree / "closed").chmod(0o000 if ROOT else 0o700)
    assert not remove_tree(tree)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious"]
    assert (precious / "file").read_text() == "x"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/"), lambda path: None])
def test_what_is_no_directory_goes_as_well(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "it")
    assert not remove_tree(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []
    assert not remove_tree(tmp_path / "no" / "such")


@as_root
def test_what_can_not_be_removed_is_named_and_left(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("a", "b/c", "b/d"):
        (tree / name).mkdir(parents=True)
    fixed = tree / "b" / "c" / "fixed\x1b[0m"
    fixed.write_text("x")
    (tree / "b" / "c" / "loose").touch()
    flagged = subprocess.run(["chattr", "+i", fixed], check=False, capture_output=True)
    if flagged.returncode != 0:
        pytest.skip("this file system has no such flag")
    try:
        left = remove_tree(tree)
        assert str(left) == f"{tree}/b/c/fixed\\x1b[0m: Operation not permitted"
        assert [path for path, _, _ in os.walk(tree)] == [str(tree), f"{tree}/b", f"{tree}/b/c"]
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert not remove_tree(tree)


@as_root
def test_what_is_mounted_is_left(tmp_path: Path) -> None:
    """Also where it is of the same file system, and where a file is the mount point."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    tree = tmp_path / "tree"
    points = tree / "deep" / "point", tree / "deep" / "point of a file"
    points[0].mkdir(parents=True)
    points[1].touch()
    sources = precious, precious / "file"
    try:
        for source, point in zip(sources, points, strict=True):
            subprocess.run(["mount", "--bind", source, point], check=True)
        left = remove_tree(tree)
        assert left.count == 2
        assert set(left.named) == {f"{point}: Device or resource busy" for point in points}
        assert (precious / "file").read_text() == "x"
    finally:
        for point in points:
            subprocess.run(["umount", point], check=True)
    assert not remove_tree(tree)
    assert (precious / "file").read_text() == "x"


def test_time_that_is_over_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "tree" / "in it").mkdir(parents=True)
    left = remove_tree(tmp_path / "tree", until=time.monotonic())
    assert left.unfinished
    assert str(left) == "the rest was not tried for lack of time"
    assert not remove_tree(tmp_path / "tree", until=time.monotonic() + 60)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_moved_meanwhile_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    (elsewhere / "precious").mkdir(parents=True)
    unlink = os.unlink

    def move(name: str, *, dir_fd: int) -> None:
        if name == "file":
            (tree / "a" / "b").rename(elsewhere / "b")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", move)
    left = remove_tree(tree)
    assert str(left) == f"{tree}/a/b: it was moved while it was removed"
    assert (elsewhere / "precious").is_dir()


def test_only_directories(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "below").mkdir(parents=True)
    (tmp_path / "cgroup" / "below" / "cgroup.procs").touch()
    assert str(remove_tree(tmp_path / "cgroup", files=False)).endswith("below: Directory not empty")
    (tmp_path / "cgroup" / "below" / "cgroup.procs").unlink()
    assert not remove_tree(tmp_path / "cgroup", files=False)


def test_many_that_stay_are_a_short_line(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4200):
        (memory / str(number)).touch()

    def refuse(name: str, *, dir_fd: int) -> None:
        raise PermissionError(1, "no") if name.isdigit() else IsADirectoryError

    monkeypatch.setattr(os, "unlink", refuse)
    left = remove_tree(memory)
    monkeypatch.undo()
    assert left.count == 4200
    assert str(left).endswith("; 4195 more")
    assert len(str(left)) < 1000
