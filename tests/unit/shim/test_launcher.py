"""The program that an installation puts into `bin`: a shell script and a Python program in one file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kata_common
import kata_protos
import kata_runtime
import kata_telemetry
from kata_protos.containerd.bootstrap_pb2 import BootstrapParams

LAUNCHER = Path(__file__).parent.parent.parent.parent / "runtime" / "scripts" / "containerd-shim-kata-v2"

pytestmark = pytest.mark.slow


@pytest.fixture
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install` makes of a virtual environment, as far as `start` needs it."""
    prefix = tmp_path_factory.mktemp("p")  # short: there will be a socket in it
    packages = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    for package in (kata_runtime, kata_protos, kata_telemetry, kata_common):
        directory = Path(package.__path__[0])
        (packages / directory.name).symlink_to(directory)
    (prefix / "bin").mkdir()
    # A link to the interpreter would make it look for a pyvenv.cfg: -S must not need one.
    (prefix / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    shutil.copy(LAUNCHER, prefix / "bin")
    return prefix


def run(program: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [program, *arguments], capture_output=True, check=False, env={"PATH": os.defpath, **environment}, timeout=30
    )


def test_it_finds_interpreter_and_packages_beside_itself(prefix: Path) -> None:
    done = run(prefix / "bin" / LAUNCHER.name, "-v")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"containerd-shim-kata-v2:\n" in done.stdout


def test_a_link_to_it_works_too(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(prefix / "bin" / LAUNCHER.name)
    assert run(tmp_path / "link", "-v").returncode == 0


def test_the_environment_can_not_make_start_noisy(prefix: Path) -> None:
    bundle = prefix / "one"
    bundle.mkdir()
    given = BootstrapParams(instance_id="one", namespace="ns", socket_dir=str(prefix / "s"))
    done = subprocess.run(
        [prefix / "bin" / LAUNCHER.name, "-namespace", "ns", "-id", "one", "-address", "/run/c", "start"],
        cwd=bundle,
        input=given.SerializeToString(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # as containerd 1.6 reads it
        check=True,
        env={
            "PATH": os.defpath,
            "PYTHONVERBOSE": "1",
            "PYTHONPROFILEIMPORTTIME": "1",
            "PYTHONWARNINGS": "always",
            "PYTHONHOME": "/nowhere",
            "PYTHONPATH": "/nowhere",
        },
        timeout=30,
    )
    assert json.loads(done.stdout)["address"].startswith(f"unix://{prefix}/s/")


def test_without_the_package_it_says_what_to_do(prefix: Path) -> None:
    shutil.rmtree(prefix / "lib")
    done = run(prefix / "bin" / LAUNCHER.name, "-v")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"No module named 'kata_runtime'; install kata-python for " in done.stderr
    assert done.stderr.count(b"\n") == 1
