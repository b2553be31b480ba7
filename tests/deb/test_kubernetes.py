"""The image of deploy/kubernetes on a node: a fresh Debian with containerd. It installs, does so once, and removes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import containerd
from support.fresh_root import System, debootstrap, running

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
IMAGE = "/tmp/image"


@pytest.fixture(scope="module")
def archive(packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("oci")
    command = (sys.executable, "-P", "deploy/kubernetes/image.py", str(packages[0]), "--output", str(directory))
    subprocess.run(command, check=True, cwd=ROOT)
    [archive] = directory.glob("*.oci.tar")
    return archive


def test_a_node(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "node"
    debootstrap(root, "bookworm")
    with running(root) as node:
        node("apt-get", "-q", "update")
        node("apt-get", "-q", "install", "--yes", "--no-install-recommends", "containerd", "mount", timeout=1200)
        _unpack(archive, root, tmp_path)
        # As a kubelet does.
        for directory, where in (("/dev", "dev"), ("/proc", "proc"), ("/", "host")):
            (root / IMAGE[1:] / where).mkdir()
            node("mount", "--rbind", directory, f"{IMAGE}/{where}")
        install = ("chroot", IMAGE, "/install.sh", "once")
        said = node("env", f"PIP_CERT={_certificates(node)}", *install, timeout=1800)
        assert "install: restart containerd: its configuration has changed" in said
        said = node("env", f"PIP_CERT={_certificates(node)}", *install, timeout=1800)
        assert "install: containerd's configuration is as it was" in said
        assert 'runtime_type = "io.containerd.kata.v2"' in node("containerd", "config", "dump")
        _run_a_container(node, tmp_path)
        assert "its configuration has changed" in node("chroot", IMAGE, "/install.sh", "remove")
        assert "kata" not in node("containerd", "config", "dump")
        assert not (root / "usr/bin/kata-runtime").exists()


def _unpack(archive: Path, root: Path, scratch: Path) -> None:
    layout, bundle = scratch / "layout", scratch / "bundle"
    layout.mkdir()
    subprocess.run(["tar", "-C", layout, "-xf", archive], check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", bundle], check=True, capture_output=True)
    shutil.move(bundle / "rootfs", root / IMAGE[1:])


def _certificates(node: System) -> str:
    return node("sh", "-c", 'echo "$PIP_CERT"').strip()


def _run_a_container(node: System, scratch: Path) -> None:
    """By the node's own containerd, and the shim that is on its PATH now."""
    (scratch / "image").mkdir()
    shutil.copy(containerd.make_image(scratch / "image"), node.root / "root/busybox.tar")
    node("sh", "-c", "containerd >/var/log/containerd.log 2>&1 & echo $! >/root/pid")
    node("sh", "-c", "for i in $(seq 100); do ctr version >/dev/null 2>&1 && exit 0; sleep 0.2; done; exit 1")
    try:
        name = containerd.IMAGE.partition(":")[0]
        node("ctr", "images", "import", "--snapshotter", "overlayfs", "--base-name", name, "/root/busybox.tar")
        runtime = ("--runtime", "io.containerd.kata.v2")
        said = node("ctr", "run", "--rm", *runtime, containerd.IMAGE, "box", "echo", "in a VM", timeout=300)
        assert said.splitlines()[-1] == "in a VM"
    finally:
        node("sh", "-c", "kill $(cat /root/pid)")
