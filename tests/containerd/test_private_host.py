"""A host whose `/` is a private mount: nothing that is mounted later reaches another mount namespace."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.containerd import CriSettings, eventually, running
from support.cri import cri_pb2 as pb
from support.cri.client import bridge, open_cri
from support.netns import made

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]


def test_volumes_that_come_after_the_pod(
    guest_image: None, artifacts: Path, shims: Path, image: Path, tmp_path: Path
) -> None:
    """As under runc, which is never anywhere else."""
    bridge(tmp_path / "cni")
    logs, volume = artifacts / "containers", tmp_path / "volume"
    logs.mkdir()
    volume.mkdir()
    with made() as (network,):
        private = (*network.prefix, "unshare", "--mount", "--propagation", "private")
        with running(shims, image, CriSettings(tmp_path / "cni", private)) as containerd:
            inside = ("nsenter", "--target", str(containerd.pid), "--mount", "--")

            def mounts() -> str:
                return subprocess.check_output([*inside, "cat", "/proc/self/mountinfo"], text=True)

            try:
                with open_cri(containerd, network, logs) as cri:
                    pod = cri.pod("late")
                    fill = f"mount -t tmpfs late {volume} && echo there >{volume}/file"
                    subprocess.run([*inside, "sh", "-c", fill], check=True)
                    mount = pb.Mount(container_path="/data", host_path=str(volume))
                    reader = pod.container("reader", "/bin/cat", "/data/file", mounts=[mount])
                    assert cri.wait(reader).exit_code == 0
                    eventually(lambda: pod.log("reader") == [("stdout", "there")], "the volume is empty")
                # What the shim has mounted there has gone with its pod.
                eventually(lambda: f"/run/kata/{pod.id}" not in mounts(), mounts())
            finally:
                shutil.copy(containerd.log, artifacts)
