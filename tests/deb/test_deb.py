"""The package in a fresh Debian, as docs/install.md says: installed, used, upgraded under a container, and gone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.fresh_root import System

pytestmark = pytest.mark.timeout(3600)

# What is no part of an installation: logs of dpkg and apt, their lists and caches.
OTHERS = ("var/log", "var/lib/dpkg", "var/lib/apt", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig",
          "etc/ld.so.cache", "var/lib/systemd", "tmp", "run", "root", "proc", "sys", "dev")  # fmt: skip


def paths(root: Path) -> set[str]:
    found = set()
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not name.startswith(OTHERS) and "__pycache__" not in name:
            found.add(name)
    return found


def test_install_use_upgrade_and_remove(system: System, packages: list[Path]) -> None:
    for package in packages:
        shutil.copy(package, system.root / "root")
    old, new = (f"/root/{package.name}" for package in packages)
    system("apt-get", "-q", "update")
    # What it needs comes first: what is left behind is counted from here.
    needs = subprocess.run(["dpkg-deb", "--field", packages[0], "Depends"], capture_output=True, text=True, check=True)
    plain = [word.split()[0] for word in needs.stdout.replace("\n", "").split(",") if "|" not in word]
    extra = ["virtiofsd"] if "virtiofsd" in system("apt-cache", "search", "--names-only", "^virtiofsd$") else []
    install = ("apt-get", "-q", "install", "--yes", "--no-install-recommends")
    system(*install, *sorted({*plain, *extra}), "containerd", timeout=1200)
    before = paths(system.root)

    system(*install, old)
    assert "kata-runtime 0.1.0" in system("kata-runtime", "version")
    assert "kata-python: next" not in system("kata-runtime", "env", "--json")
    said = system("kata-runtime", "install", timeout=1200)
    assert "the runtime kata" in said
    assert "image: " in said
    assert 'runtime_type = "io.containerd.kata.v2"' in system("containerd", "config", "dump")
    assert "System is capable of running Kata Containers" in system("kata-runtime", "check")
    assert system("kata-runtime", "run", "--", "echo", "inside").splitlines()[-1] == "inside"
    traced = system("kata-runtime", "run", "--trace", "--name", "seen", "--", "true")
    assert "rootSpan" in system("kata-runtime", "trace", "show", "seen"), traced

    system("kata-runtime", "run", "-d", "--name", "old", "--", "sleep", "1000")
    assert "kata-python/0.1.0-1 stays" in system(*install, new)
    assert (system.root / "opt/kata-python/current").readlink() == Path("0.1.0-2")
    # The old version's container is reached and ended by the new version.
    assert system("kata-runtime", "exec", "old", "--", "echo", "still").splitlines()[-1] == "still"
    assert "containers are running: old" in system("apt-get", "-q", "remove", "--yes", "kata-python", status=100)
    assert "old" in system("kata-runtime", "list", "--quiet")
    system("kata-runtime", "stop", "old")
    system("dpkg-reconfigure", "kata-python")
    assert not (system.root / "opt/kata-python/0.1.0-1").exists()

    system("apt-get", "-q", "remove", "--yes", "kata-python")
    assert not (system.root / "opt/kata-python").exists()
    assert (system.root / "etc/kata-containers/configuration.toml").exists()
    system("apt-get", "-q", "purge", "--yes", "kata-python")
    assert paths(system.root) - before == set()
    assert "kata" not in system("containerd", "config", "dump")
