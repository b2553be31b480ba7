"""Kata's own two configuration templates, filled in for this machine, start a container."""

import os
import shutil
from pathlib import Path

import pytest

from kata_runtime.hypervisor.virtiofsd import PROGRAMS
from support.kata import Kata
from support.kata_templates import GO, RUST, Template

pytestmark = pytest.mark.vm
IMAGE = Path(os.environ.get("KATA_IMAGE_DIR") or "/var/lib/kata-containers/image")


@pytest.mark.parametrize("template", [GO, RUST], ids=["go", "runtime-rs"])
def test_a_container_starts(kata: Kata, template: Template) -> None:
    virtiofsd = shutil.which("virtiofsd") or next(path for path in PROGRAMS if Path(path).exists())
    paths = {
        "@QEMUPATH@": shutil.which("qemu-system-x86_64"),
        "@KERNELPATH@": str(IMAGE / "vmlinux"),
        "@IMAGEPATH@": str(IMAGE / "rootfs.img"),
        "@DEFVIRTIOFSDAEMON@": virtiofsd,
    }
    for table, keys in template.items():
        kata.configure(
            table, **{key: paths.get(value, value) if isinstance(value, str) else value for key, value in keys.items()}
        )
    kata.configure("hypervisor.qemu", kernel_params="cgroup_no_v1=all agent.log=debug")
    script = "cat /proc/cmdline; grep MemTotal /proc/meminfo; grep -c processor /proc/cpuinfo"
    done = kata.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    line, memory, cpus = done.stdout.decode().splitlines()
    assert "cgroup_no_v1=all agent.log=debug" in line
    assert 1_800_000 < int(memory.split()[1]) < 2048 * 1024
    assert cpus == "1"


@pytest.mark.parametrize("cache", ["never", "metadata", "always"])
def test_every_cache_of_virtiofsd(kata: Kata, cache: str) -> None:
    kata.configure("hypervisor.qemu", virtio_fs_cache=cache, virtio_fs_extra_args=["--announce-submounts"])
    done = kata.run("sh", "-c", "echo kept > /file; cat /file")
    assert done.stdout == b"kept\n", done.stderr
