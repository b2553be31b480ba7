"""Fetches Docker (Debian 13's packages) and builds nerdctl from its source: minutes, then never again.

KATA_NERDCTL names a nerdctl that is there already. Needs mmdebstrap and, for nerdctl, git, Go and GitHub.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kata_runtime.image.packages import MIRROR, host_transport

# Debian 12 has Docker 20.10, which can't run shims. These programs run on it: they need glibc 2.34.
RELEASE = "trixie"
NERDCTL = "v2.3.5"
BIN = Path(__file__).parent.parent.parent / ".cache" / "docker"
PROGRAMS = ("usr/sbin/dockerd", "usr/sbin/docker-proxy", "usr/bin/docker")


def docker() -> None:
    """Docker's programs."""
    if all((BIN / Path(program).name).exists() for program in PROGRAMS):
        return
    with tempfile.TemporaryDirectory(dir=BIN) as name:
        root = Path(name) / "root"
        options = [f"--aptopt={setting.removesuffix(';')}" for setting in host_transport()]
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=docker.io,docker-cli", *options]
        subprocess.run([*command, RELEASE, root, MIRROR], check=True)
        for program in PROGRAMS:
            shutil.move(root / program, BIN / Path(program).name)


def nerdctl() -> None:
    """nerdctl; its module has replacements, so `go install` refuses it."""
    program = BIN / "nerdctl"
    if program.exists():
        return
    if given := os.environ.get("KATA_NERDCTL"):
        shutil.copy(given, program)
        return
    with tempfile.TemporaryDirectory(dir=BIN) as name:
        source = ["--branch", NERDCTL, "https://github.com/containerd/nerdctl", name]
        subprocess.run(["git", "-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1", *source], check=True)
        environment = {**os.environ, "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", program, "./cmd/nerdctl"], cwd=name, env=environment, check=True)


def main() -> int:
    """Fetch what is missing."""
    BIN.mkdir(parents=True, exist_ok=True)
    docker()
    nerdctl()
    return 0


if __name__ == "__main__":
    sys.exit(main())
