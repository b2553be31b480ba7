"""The wheel as pip installs it, `kata-runtime install` below a root, what containerd makes of that, and away again."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONTAINERD = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "kept:1"\n'


def run(*command: str | Path) -> str:
    """Its output; as root of a user namespace where we are none."""
    prefix = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    done = subprocess.run([*prefix, *map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a virtual environment in it, which has the wheel; what that needs is this environment's."""
    directory = tmp_path_factory.mktemp("install")
    pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--quiet")
    source = directory / "source"
    # Of what git would take along, for a build writes nothing into the checkout.
    ignored = shutil.ignore_patterns("__pycache__", ".*", "artifacts", "tests")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", directory, source)
    [wheel] = directory.glob("*.whl")
    root = directory / "root"
    venv = root / "opt/kata"
    run(sys.executable, "-P", "-m", "venv", "--without-pip", venv)
    run(*pip, "--python", venv / "bin/python", "install", "--no-deps", "--no-index", wheel)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (root / "etc/containerd").mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_text(CONTAINERD)
    return root


def paths(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {path for path in found if "__pycache__" not in path}


def test_from_the_wheel_to_nothing(system: Path) -> None:
    kata = system / "opt/kata/bin/kata-runtime"
    before = paths(system)
    said = run(kata, "install", "--root", system, "--no-image", "--prefix", "/usr")
    assert "/usr/bin/kata-runtime -> /opt/kata/bin/kata-runtime" in said
    # The wheel has what is installed from it, nothing from this checkout.
    assert (system / "etc/kata-containers/configuration.toml").read_bytes() == (
        ROOT / "configuration.toml"
    ).read_bytes()
    assert {"etc/systemd/system/kata-trace-forwarder.service", "usr/share/man/man1/kata-runtime-run.1"} <= paths(system)
    assert run(kata, "--config", system / "etc/kata-containers/configuration.toml", "config", "check")
    dump = run("containerd", "--config", system / "etc/containerd/config.toml", "config", "dump")
    assert 'runtime_type = "io.containerd.kata.v2"' in dump
    # What was configured before still is.
    assert 'sandbox_image = "kept:1"' in dump
    run(kata, "uninstall", "--root", system)
    assert paths(system) == before
    assert (system / "etc/containerd/config.toml").read_text() == CONTAINERD


def test_units_are_as_systemd_wants_them(system: Path, tmp_path: Path) -> None:
    kata = system / "opt/kata/bin/kata-runtime"
    run(kata, "install", "--root", system, "--no-image")
    try:
        units = sorted((system / "etc/systemd/system").iterdir())
        assert len(units) >= 3
        copies = []
        for unit in units:
            # Programs and manuals of here, for it looks whether they are there.
            text = unit.read_text().replace("/usr/local/bin", str(system / "opt/kata/bin"))
            (tmp_path / unit.name).write_text(text)
            copies.append(tmp_path / unit.name)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, check=False
        )
        ours = [line for line in done.stderr.splitlines() if "kata" in line]
        assert (done.returncode, ours) == (0, []), done.stderr
    finally:
        run(kata, "uninstall", "--root", system)
