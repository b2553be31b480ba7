import os
from pathlib import Path

import pytest

from kata_runtime.errors import SandboxError
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


def test_directories_live_as_long_as_the_block(roots: Directories) -> None:
    directory = SandboxDirectory(roots, "a")
    with directory.opened():
        assert directory.shared.is_dir()
        (directory.run / "file").write_text("x")
        (directory.shared / "made by the guest").mkdir()
    assert list(roots.run.iterdir()) == list(roots.layers.iterdir()) == []


def test_an_id_is_taken_while_its_sandbox_lives(roots: Directories) -> None:
    with (
        SandboxDirectory(roots, "a").opened(),
        pytest.raises(SandboxError, match="is running"),
        SandboxDirectory(roots, "a").opened(),
    ):
        pass


def test_sweep_removes_what_a_killed_runtime_left(roots: Directories) -> None:
    dead = SandboxDirectory(roots, "dead")
    dead.shared.mkdir(parents=True)
    dead.layers.mkdir(parents=True)
    (dead.layers / "file").write_text("x")
    with SandboxDirectory(roots, "alive").opened():
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


def test_sweep_leaves_alone_what_is_about_to_be_locked(roots: Directories) -> None:
    """Two runtimes start at once: one has made its directory and not locked it yet, the other one sweeps."""
    roots.run.mkdir()
    (roots.run / "young").mkdir()
    (roots.run / "old").mkdir()
    os.utime(roots.run / "old", (0, 0))
    assert roots.sweep() == ["old"]
    with SandboxDirectory(roots, "young").opened():
        pass


def test_a_directory_that_goes_away_meanwhile_is_made_again(
    roots: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, opens = SandboxDirectory(roots, "a"), os.open

    def removed_before(path: Path, flags: int) -> int:
        monkeypatch.undo()
        directory.run.rmdir()
        return opens(path, flags)

    monkeypatch.setattr(os, "open", removed_before)
    with directory.opened():
        assert directory.run.is_dir()
