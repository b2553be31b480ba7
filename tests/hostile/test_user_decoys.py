"""A user of the host lays out modules where root will stand, and in root's PYTHON* variables: nobody runs them."""

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kata_runtime.image import DEFAULT_CACHE
from support.collectors import grpc_collector
from support.kata import Kata

pytestmark = pytest.mark.vm

# What any of our programs imports; those that Python has built in come from nowhere else.
NAMES = sorted(
    {name for name in (*sys.stdlib_module_names, *packages_distributions()) if name.isidentifier()}
    | {"sitecustomize", "usercustomize", "kata_runtime", "kata_telemetry", "kata_protos", "kata_agent"}
)
PROGRAMS = (
    "python3",
    "nice",
    "qemu-system-x86_64",
    "virtiofsd",
    "nsenter",
    "setpriv",
    "sh",
    "chroot",
    "apt-get",
    "mke2fs",
)


@pytest.fixture(params=["place", "variables"])
def decoys(request: pytest.FixtureRequest, kata: Kata, tmp_path: Path) -> Path:
    """A directory with a package of every name; `executed` says which of them ran."""
    executed = tmp_path / "executed"
    place = tmp_path / "decoys"
    place.mkdir()
    for name in NAMES:
        (place / name).mkdir()
        (place / name / "__init__.py").write_text(f"open({str(executed)!r}, 'a').write('module {name}\\n')\n")
        (place / name / "__main__.py").write_text(f"open({str(executed)!r}, 'a').write('main {name}\\n')\n")
    for name in PROGRAMS:
        (place / name).write_text(f"#!/bin/sh\necho program {name} >>{executed}\nexit 1\n")
        (place / name).chmod(0o755)
    if request.param == "place":
        return place
    kata.environment.update(
        PYTHONPATH=f"{place}::.",
        PYTHONHOME=str(place),
        PYTHONSTARTUP=str(place / "json/__init__.py"),
        PYTHONUSERBASE=str(place),
        PYTHONWARNINGS="error::decoy.Warning",
        PYTHONBREAKPOINT="json.breakpoint",
        PATH=f":.:{os.environ['PATH']}:",
        LD_LIBRARY_PATH=":.",
    )
    return place


def run(kata: Kata, decoys: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(kata.command(*arguments), cwd=decoys, env=kata.env(), capture_output=True, check=False)


def executed(decoys: Path) -> str:
    path = decoys.parent / "executed"
    return path.read_text() if path.exists() else ""


def test_the_decoys_work(kata: Kata, decoys: Path) -> None:
    """They would run, were it not for what this file is about."""
    subprocess.run([sys.executable, "-c", "import tomllib"], cwd=decoys, check=True)
    subprocess.run([sys.executable, "-m", "grpc"], cwd=decoys, check=False)
    subprocess.run(["/bin/sh", "-c", "virtiofsd"], cwd=decoys, env={"PATH": ":/usr/bin"}, check=False)
    assert {"module tomllib", "module importlib", "program virtiofsd"} <= set(executed(decoys).splitlines())


def test_a_run(kata: Kata, decoys: Path) -> None:
    """With all that starts a Python: the runtime, the vsock backend, the loader of a configuration, the exporter."""
    with grpc_collector() as collected:
        kata.tracing(runtime=True, agent=True).configure("runtime", otlp_endpoint=collected.endpoint)
        done = run(kata, decoys, "run", "--", "echo", "hello")
        assert (done.stdout, done.returncode) == (b"hello\n", 0), done.stderr
        assert collected.wait(lambda c: "rootSpan" in c.names, 60)
    assert run(kata, decoys, "trace", "show", "latest").returncode == 0
    assert run(kata, decoys, "check").returncode in (0, 1)
    assert executed(decoys) == ""


def test_an_image(kata: Kata, decoys: Path, tmp_path: Path) -> None:
    """A whole build, with pip, which takes the wheels from where the last build put them."""
    cache = tmp_path / "cache"
    with (DEFAULT_CACHE / "lock").open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # another build may change it
        # Nothing else of what others keep there: a root file system's /dev/full has no end.
        for name in ("apt", "packages"):
            shutil.copytree(DEFAULT_CACHE / name, cache / name, symlinks=True)
        shutil.copy2(DEFAULT_CACHE / "packages.json", cache)
    (wheels,) = DEFAULT_CACHE.glob("wheels-????????????????")
    kata.environment.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = run(kata, decoys, "image", "build", "--cache", str(cache), "--output", str(tmp_path / "image"))
    assert done.returncode == 0, done.stderr
    assert b"downloading Python packages" in done.stdout
    assert executed(decoys) == ""


def test_the_other_programs(kata: Kata, decoys: Path) -> None:
    for name, argument in (("containerd-shim-kata-v2", "-v"), ("kata-trace-forwarder", "--help")):
        program = Path(sys.executable).with_name(name)
        done = subprocess.run([program, argument], cwd=decoys, env=kata.env(), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert executed(decoys) == ""
