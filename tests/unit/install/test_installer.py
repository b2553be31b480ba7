"""What `kata-runtime install` writes below a root, and that `uninstall` leaves it as it was."""

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest

from kata_runtime.cli import main as cli
from kata_runtime.config import load
from kata_runtime.errors import HostError
from kata_runtime.install import containerd
from kata_runtime.install.installer import RECORD, Installer
from kata_runtime.install.items import CONFIGURATION, Item
from kata_runtime.install.tree import Tree


def snapshot(root: Path) -> dict[str, object]:
    """Every path below `root` with what it is."""
    found: dict[str, object] = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = str(path.readlink())
            else:
                found[str(path.relative_to(root))] = path.read_bytes() if path.is_file() else stat.S_IMODE(
                    path.stat().st_mode
                )  # fmt: skip
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with a containerd that is configured."""
    root = tmp_path / "root"
    (root / "etc/containerd").mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_text('version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n')
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "etc/systemd").mkdir()
    return root


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the launcher of an installation has it."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    binaries = tmp_path / "venv/bin"
    binaries.mkdir(parents=True)
    for name in ("kata-runtime", "containerd-shim-kata-v2", "kata-trace-forwarder", "kata-monitor"):
        (binaries / name).touch()
    monkeypatch.setattr("sys.argv", [str(binaries / "kata-runtime")])


def kata(*words: str) -> int:
    return cli.main([*words])


def install(root: Path, *more: str) -> int:
    return kata("install", "--root", str(root), "--no-image", *more)


@pytest.mark.slow
def test_install_and_uninstall_leave_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    assert install(root) == 0
    said = capsys.readouterr().out
    assert (root / "usr/local/bin/containerd-shim-kata-v2").readlink() == tmp_path / "venv/bin/containerd-shim-kata-v2"
    assert load(root / CONFIGURATION[1:]).hypervisor.default_memory == 2048
    after = snapshot(root)
    new = {path for path in after if path not in before and not isinstance(after[path], int)}
    # Each file was said.
    assert [path for path in new if f"/{path}" not in said and path != RECORD[1:]] == []
    for directory in ("usr/local/share/man/man1", "etc/systemd/system", "usr/local/share/bash-completion/completions"):
        assert any(path.startswith(directory) for path in new)
    assert not any(b"@BIN@" in (root / path).read_bytes() for path in new if "systemd" in path)
    table = tomllib.loads((root / "etc/containerd/config.toml").read_text())["plugins"]["io.containerd.grpc.v1.cri"]
    assert table["containerd"]["runtimes"]["kata"]["runtime_type"] == "io.containerd.kata.v2"
    # Once more changes nothing.
    assert install(root) == 0
    assert "wrote" not in capsys.readouterr().out
    assert snapshot(root) == after
    assert kata("uninstall", "--root", str(root)) == 0
    assert snapshot(root) == before


@pytest.mark.slow
def test_a_dry_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    assert install(root, "--dry-run") == 0
    assert "wrote      /usr/local/bin/kata-runtime -> " in capsys.readouterr().out
    assert snapshot(root) == before
    install(root)
    installed = snapshot(root)
    capsys.readouterr()
    assert kata("uninstall", "--root", str(root), "--dry-run") == 0
    assert "removed    /usr/local/bin/kata-runtime" in capsys.readouterr().out
    assert snapshot(root) == installed


@pytest.mark.slow
def test_what_is_not_ours_is_not_touched(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shim = root / "usr/local/bin/containerd-shim-kata-v2"
    shim.write_text("Kata's own")
    before = snapshot(root)
    assert install(root) == 125
    assert "/usr/local/bin/containerd-shim-kata-v2 is there and not of an installation of ours" in (
        capsys.readouterr().err
    )
    assert snapshot(root) == before
    assert install(root, "--force") == 0
    assert shim.is_symlink()


@pytest.mark.slow
def test_a_configuration_is_the_administrators(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(root)
    configuration = root / CONFIGURATION[1:]
    configuration.write_text("[runtime]\nenable_tracing = true\n")
    capsys.readouterr()
    assert install(root) == 0
    assert f"kept       {CONFIGURATION}: yours" in capsys.readouterr().out
    assert kata("uninstall", "--root", str(root)) == 0
    assert configuration.exists()
    assert f"kept       {CONFIGURATION}: changed since" in capsys.readouterr().out


@pytest.mark.slow
def test_purge_takes_that_too(root: Path) -> None:
    before = snapshot(root)
    install(root)
    (root / CONFIGURATION[1:]).write_text("# mine\n")
    for path in ("var/lib/kata-containers/traces/x/spans.jsonl", "var/cache/kata-containers/x", "run/kata/.x"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "run/kata/.x").unlink()
    assert kata("uninstall", "--root", str(root), "--purge") == 0
    assert {path for path in snapshot(root) if path not in before} <= {"var", "var/lib", "var/cache", "run"}


def test_nothing_to_uninstall(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kata("uninstall", "--root", str(root)) == 125
    assert "nothing is installed" in capsys.readouterr().err


def test_root_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert install(root) == 125
    assert "needs root" in capsys.readouterr().err


# --- the writing ----------------------------------------------------------------------------------------------------


def installer(root: Path, version: str = "1") -> Installer:
    return Installer(Tree(root), lambda _: None, dry_run=False, version=version)


def test_an_upgrade_takes_what_it_has_no_more(tmp_path: Path) -> None:
    installer(tmp_path).install([Item("/a/b", b"1"), Item("/a/c", b"1"), Item("/a/d", b"1")])
    (tmp_path / "a/d").write_text("changed")
    installer(tmp_path, "2").install([Item("/a/b", b"2")])
    assert (tmp_path / "a/b").read_text() == "2"
    assert not (tmp_path / "a/c").exists()
    assert (tmp_path / "a/d").read_text() == "changed"


def test_an_interrupted_install_can_be_taken_away(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def say(line: str) -> None:
        if "/a/c" in line:
            raise Stop

    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(Stop):
        Installer(Tree(root), say, dry_run=False, version="1").install([Item("/a/b", b"1"), Item("/a/c", b"1")])
    assert (root / "a/b").exists()
    installer(root).uninstall()
    assert list(root.iterdir()) == []


def test_absolute_symlinks_of_a_root_are_its_own(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / "real").mkdir(parents=True)
    (root / "etc").symlink_to("/real")
    (root / "gone").symlink_to(f"{outside}/nothing")
    installer(root).install([Item("/etc/deep/x", b"1")])
    assert (root / "real/deep/x").read_bytes() == b"1"
    with pytest.raises(HostError, match="leads nowhere"):
        installer(root).install([Item("/gone/x", b"1")])
    assert list(outside.iterdir()) == []


def test_a_record_that_is_none(tmp_path: Path) -> None:
    (tmp_path / RECORD[1:]).parent.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"nosuch": 1})):
        (tmp_path / RECORD[1:]).write_text(text)
        with pytest.raises(HostError, match="no record of an installation"):
            installer(tmp_path)


# --- containerd's configuration -------------------------------------------------------------------------------------

CRI2, CRI3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"


def runtimes(text: str, plugin: str) -> set[str]:
    return set(tomllib.loads(text)["plugins"][plugin]["containerd"]["runtimes"])


@pytest.mark.parametrize(
    "text",
    [
        "version = 2\n",
        f'version = 2\n[plugins."{CRI2}".containerd.runtimes.runc]\nruntime_type = "x"\n',
        f'version = 2\n[plugins]\n  [plugins."{CRI2}"]\n    [plugins."{CRI2}".cni]\n      bin_dir = "/x"\n',
    ],
)
def test_containerd_1_gets_a_block(text: str) -> None:
    changed = containerd.change(text)
    assert changed.config is not None
    assert changed.drop_in == ""
    assert "kata" in runtimes(changed.config, CRI2)
    assert containerd.change(changed.config) == changed
    assert containerd.undo(changed.config) == text


def test_containerd_2_gets_a_file_of_its_own() -> None:
    changed = containerd.change("version = 3\n[grpc]\n  gid = 0\n")
    assert "kata" in runtimes(changed.drop_in, CRI3)
    assert changed.config is not None
    assert tomllib.loads(changed.config)["imports"] == ["/etc/containerd/conf.d/*.toml"]
    assert containerd.undo(changed.config) == "version = 3\n[grpc]\n  gid = 0\n"
    imports = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    assert containerd.change(imports).config is None


def test_without_a_file_there_is_one() -> None:
    changed = containerd.change(None)
    assert changed.config is not None
    assert "kata" in runtimes(changed.config, CRI2)
    assert containerd.undo(changed.config) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "version 1"),
        ("version = 4\n", "version 4"),
        ("version = 2\n[", "config.toml"),
        (f'version = 2\n[plugins."{CRI2}".containerd.runtimes.kata]\nruntime_type = "x"\n', "named kata already: x"),
        ('version = 3\nimports = ["/etc/other/*.toml"]\n', "imports other files"),
        (f'version = 2\nplugins = {{"{CRI2}" = {{}}}}\n', "config.toml"),
    ],
)  # fmt: skip
def test_what_can_not_be_changed_is_said(text: str, says: str) -> None:
    with pytest.raises(HostError, match=says) as caught:
        containerd.change(text)
    assert caught.value.hint
