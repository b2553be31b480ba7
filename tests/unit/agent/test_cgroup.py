"""A container's cgroup, of which a privileged workload can make a tree as deep as it likes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_agent.container.cgroup import Cgroup
from kata_common.removal import remove_tree


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory that looks like a cgroup with 1,200 others in each other; three levels have a process."""
    top = tmp_path / "c"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for number in range(1200):
        if number in (0, 7, 900):
            fd = os.open("cgroup.procs", os.O_CREAT | os.O_WRONLY, dir_fd=here)
            os.write(fd, b"%d\n" % (number + 1))
            os.close(fd)
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    yield top
    remove_tree(top)  # pytest can't


def test_who_is_in_it(deep: Path) -> None:
    assert Cgroup(deep).pids() == [1, 8, 901]


def test_it_goes(tmp_path: Path, deep: Path) -> None:
    with pytest.raises(OSError, match="Directory not empty"):
        Cgroup(deep).remove()  # these files are no cgroup's, with which its directory would go
    for path in (deep / "cgroup.procs", deep / "/".join("d" * 7) / "cgroup.procs"):
        path.unlink()
    (deep / "/".join("d" * 900) / "cgroup.procs").unlink()
    Cgroup(deep).remove()
    assert list(tmp_path.iterdir()) == []
