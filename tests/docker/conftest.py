"""Engines above a containerd of the tests' own, in a network namespace of their own for their bridges."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from docker.fetch import BIN
from support.containerd import Containerd, make_image, missing, running, write_shim
from support.cri.client import bridge
from support.engine import Engine
from support.netns import Netns, made

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive of busybox; beside it, `bundle/rootfs`."""
    if why := missing():
        pytest.fail(why)
    return make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def containerd(artifacts: Path, guest_image: None, network: Netns, tmp_path: Path) -> Iterator[Containerd]:
    """A containerd with our shim, for engines that bring their own images."""
    write_shim(tmp_path / "containerd-shim-kata-v2", sys.executable, ROOT / "tests" / "support" / "kata_shim.py")
    # Its shims run the hooks by which nerdctl makes a bridge, and the firewall's rules for it.
    with running(tmp_path, None, prefix=network.prefix) as containerd:
        yield containerd
        shutil.copy(containerd.log, artifacts)


@pytest.fixture
def network() -> Iterator[Netns]:
    """The engine's "host"."""
    with made() as (network,):
        yield network


@pytest.fixture
def docker(containerd: Containerd, network: Netns, image: Path, artifacts: Path) -> Iterator[Engine]:
    """A dockerd with a bridge of its own, whose runtime `kata` reads configuration.toml among the artifacts."""
    home = containerd.directory
    (home / "daemon.json").write_text(
        '{"runtimes": {"kata": {"runtimeType": "io.containerd.kata.v2", "options": {"TypeUrl": '
        f'"runtimeoptions.v1.Options", "ConfigPath": "{artifacts}/configuration.toml"}}}}}}}}'
    )
    command: list[str | Path] = [
        BIN / "dockerd",
        "--config-file",
        home / "daemon.json",
        "--containerd",
        containerd.address,
    ]
    places: list[str | Path] = [
        "--data-root",
        home / "data",
        "--exec-root",
        home / "exec",
        "--pidfile",
        home / "docker.pid",
    ]
    networks = ["--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--bip=10.144.9.1/24"]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "DOCKER_HOST": f"unix://{home}/d.sock"}
    engine = Engine((BIN / "docker",), "busybox", network, containerd, environment)
    with (artifacts / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            [*network.prefix, *command, "-H", f"unix://{home}/d.sock", *places, *networks],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        for _ in range(200):
            if engine("version", check=False).returncode == 0:
                break
            assert daemon.poll() is None, (artifacts / "dockerd.log").read_text()
            time.sleep(0.05)  # it has no other way to tell that it is up
        archive = subprocess.run(
            ["tar", "-C", image.parent / "bundle" / "rootfs", "-c", "."], check=True, stdout=subprocess.PIPE
        )
        engine("import", "-", "busybox", data=archive.stdout)
        yield engine
    finally:
        # It stops its containers first.
        daemon.terminate()
        daemon.wait(60)


@pytest.fixture
def nerdctl(containerd: Containerd, network: Netns, image: Path) -> Engine:
    """nerdctl with directories of its own."""
    home = containerd.directory
    base = "docker.io/library/busybox"
    containerd.ctr("images", "import", "--snapshotter", "overlayfs", "--base-name", base, image)
    # Its own network would have its addresses in /var/lib/cni.
    bridge(home / "cni")
    places = ("--data-root", home / "nerdctl", "--cni-path", "/usr/lib/cni", "--cni-netconfpath", home / "cni")
    command = (BIN / "nerdctl", "--address", containerd.address, "--namespace", containerd.namespace, *places)
    named = ("--network", "kata-test")
    return Engine(
        (*command, "--cgroup-manager=cgroupfs"), "busybox:test", network, containerd, {**os.environ}, bridge=named
    )
