"""The Debian package's own work, here, with an /opt and a /usr/share of the test's; `nox -s deb` has the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# In a mount namespace: what the package has is there, and nothing that is written reaches this machine.
TRY = """
set -e
mount -t overlay -o "lowerdir=$1/tree/usr/share:/usr/share" overlay /usr/share
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/opt,upperdir=$1/upper,workdir=$1/work" overlay /opt
sh "$1/control/postinst" configure
/opt/kata-python/current/bin/kata-runtime version
/opt/kata-python/current/bin/kata-monitor --help | head -n 1
readlink /opt/kata-python/current
# Another version comes while something of this one runs.
/opt/kata-python/0.1.0-7/bin/python3 -I -c 'import time; print("runs", flush=True); time.sleep(100)' >"$1/said" &
until grep -q runs "$1/said"; do sleep 0.1; done
sed 's/^version=.*/version=0.1.0-8/' "$1/control/postinst" >"$1/newer"
sh "$1/newer" configure 0.1.0-7
ls /opt/kata-python
kill $!
wait $! || true
sh "$1/newer" configure 0.1.0-7
ls /opt/kata-python
"""


def test_an_environment_for_each_version(tmp_path: Path) -> None:
    asked = ["/usr/bin/python3", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    python = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    build = (sys.executable, "-P", "debian/build.py", "--version", "0.1.0-7", "--python", python)
    subprocess.run([*build, "--output", str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    [package] = tmp_path.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "tree"], check=True)
    subprocess.run(["dpkg-deb", "--control", package, tmp_path / "control"], check=True)
    link = tmp_path / "tree/usr/bin/containerd-shim-kata-v2"
    assert link.readlink() == Path("/opt/kata-python/current/bin/containerd-shim-kata-v2")
    assert (tmp_path / "control/conffiles").read_text() == "/etc/kata-containers/configuration.toml\n"
    for name in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", tmp_path / "control" / name], check=True)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", TRY, "try", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert "kata-runtime 0.1.0" in said
    assert "usage: kata-monitor [-h] [--listen-address ADDRESS]" in done.stdout
    assert "0.1.0-7" in said
    assert "kata-python: /opt/kata-python/0.1.0-7 stays: containers of that version are running" in said
    assert said[-2:] == ["0.1.0-8", "current"]
