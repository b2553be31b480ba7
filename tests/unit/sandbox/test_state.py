import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_runtime.errors import SandboxError
from kata_runtime.sandbox import state
from kata_runtime.sandbox.state import Directories, SandboxDirectory, valid_id


@pytest.fixture
def roots(tmp_path: Path) -> Directories:
    return Directories(run=tmp_path / "run", layers=tmp_path / "layers")


@pytest.mark.parametrize("name", ["a", "A1", "a-b_c.d", "x" * 76])
def test_valid_ids(name: str) -> None:
    assert valid_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a..b", "a b", "ä", "x" * 77, "a\n", "a\0"])
def test_ids_that_could_be_paths(name: str) -> None:
    with pytest.raises(SandboxError):
        valid_id(name)


async def test_directories_live_as_long_as_the_block(roots: Directories) -> None:
    directory = SandboxDirectory(roots, "a")
    async with directory.opened():
        assert directory.shared.is_dir()
        (directory.run / "file").write_text("x")
        (directory.shared / "made by the guest").mkdir()
    assert list(roots.run.iterdir()) == list(roots.layers.iterdir()) == []


async def test_an_id_is_taken_while_its_sandbox_lives(roots: Directories) -> None:
    async with SandboxDirectory(roots, "a").opened():
        with pytest.raises(SandboxError, match="is running"):
            await SandboxDirectory(roots, "a").opened().__aenter__()


async def test_sweep_removes_what_a_killed_runtime_left(roots: Directories) -> None:
    dead = SandboxDirectory(roots, "dead")
    dead.shared.mkdir(parents=True)
    dead.layers.mkdir(parents=True)
    (dead.layers / "file").write_text("x")
    async with SandboxDirectory(roots, "alive").opened():
        assert roots.sweep() == ["dead"]
        assert [path.name for path in roots.run.iterdir()] == ["alive"]
        assert [path.name for path in roots.layers.iterdir()] == ["alive"]


def test_a_symlink_in_a_dead_sandbox_is_not_followed(roots: Directories, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    dead = SandboxDirectory(roots, "dead")
    dead.shared.mkdir(parents=True)
    (dead.shared / "link").symlink_to(precious)
    (dead.run / "link").symlink_to(precious)
    roots.sweep()
    assert (precious / "file").exists()


async def test_sweep_leaves_alone_what_is_about_to_be_locked(roots: Directories) -> None:
    """Two runtimes start at once: one has made its directory and not locked it yet, the other one sweeps."""
    roots.run.mkdir()
    (roots.run / "young").mkdir()
    (roots.run / "old").mkdir()
    os.utime(roots.run / "old", (0, 0))
    assert roots.sweep() == ["old"]
    async with SandboxDirectory(roots, "young").opened():
        pass


async def test_a_directory_that_goes_away_meanwhile_is_made_again(
    roots: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, opens = SandboxDirectory(roots, "a"), os.open

    def removed_before(path: Path, flags: int) -> int:
        monkeypatch.undo()
        directory.run.rmdir()
        return opens(path, flags)

    monkeypatch.setattr(os, "open", removed_before)
    async with directory.opened():
        assert directory.run.is_dir()


def nested(directory: Path, depth: int) -> None:
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)


@pytest.fixture
def memory() -> Iterator[Directories]:
    """In memory: a busy disk takes long for many directories."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Directories(run=Path(directory, "run"), layers=Path(directory, "layers"))


@pytest.mark.slow
async def test_a_tree_however_deep_goes(memory: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workload makes it in a moment; it once ended the run and each later one with a RecursionError."""
    roots = memory
    monkeypatch.setattr(state, "_SWEEPING", 60.0)  # on a busy machine it is more than one run's share
    async with SandboxDirectory(roots, "a").opened() as directory:
        nested(directory.layers, 1200)
        nested(directory.shared, 1200)
    assert list(roots.run.iterdir()) == list(roots.layers.iterdir()) == []
    dead = SandboxDirectory(roots, "dead")
    dead.shared.mkdir(parents=True)
    nested(dead.shared, 1200)
    assert roots.sweep() == ["dead"]


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of these names can't be removed."""
    names: list[str] = []
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if name in names:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    return names


async def test_what_a_run_leaves_is_one_line(
    roots: Directories, stuck: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    stuck.append("fixed\x1b")
    directory = SandboxDirectory(roots, "a")
    async with directory.opened():
        (directory.layers / "fixed\x1b").touch()
        (directory.layers / "loose").touch()
    said = f"{roots.layers}/a/fixed\\x1b: Operation not permitted"
    assert caplog.messages == [f"what sandbox a leaves can't be removed: {said}"]
    assert [path.name for path in directory.layers.iterdir()] == ["fixed\x1b"]
    with pytest.raises(SandboxError, match=r"what an earlier sandbox a left can't be removed: .*fixed"):
        await directory.opened().__aenter__()
    stuck.clear()
    os.utime(directory.run, (0, 0))
    assert roots.sweep() == ["a"]


def test_one_that_can_not_be_removed_is_nobody_elses_trouble(
    roots: Directories, stuck: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        SandboxDirectory(roots, name).shared.mkdir(parents=True)
    (SandboxDirectory(roots, "a").shared / "fixed").touch()
    stuck.append("fixed")
    close_trace = SandboxDirectory.close_trace

    def fail(self: SandboxDirectory) -> None:
        if self.sandbox_id == "c":
            raise RecursionError
        close_trace(self)

    monkeypatch.setattr(SandboxDirectory, "close_trace", fail)
    assert roots.sweep() == ["b", "d"]


def test_a_run_does_not_wait_for_what_takes_long_to_remove(roots: Directories, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = SandboxDirectory(roots, "dead")
    dead.shared.mkdir(parents=True)
    nested(dead.shared, 3)
    monkeypatch.setattr("kata_runtime.sandbox.state._SWEEPING", 0)
    assert roots.sweep() == []
    monkeypatch.undo()
    assert roots.sweep() == ["dead"]
