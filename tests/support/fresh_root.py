"""A Debian in a tree that is root for processes of namespaces of its own: fresh, and gone without a trace."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.image.packages import MIRROR, host_mirrors, host_transport

__all__ = ["System", "debootstrap", "running"]

# Those that this machine's pip trusts.
CERTIFICATES = "/etc/host-certificates.pem"
# Becomes process 1: when it ends, so does all that runs in there.
INIT = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs shm dev/shm
mount -t tmpfs run run
mkdir -p .host
pivot_root . .host
/.host/bin/umount -l /.host
rmdir /.host
echo ready
exec sleep infinity
"""


@dataclass(frozen=True)
class System:
    """A system that runs."""

    root: Path
    pid: int

    def __call__(self, *command: str, timeout: float = 600, status: int | None = 0) -> str:
        """Run a command as its root; what it wrote, once it has ended with `status` (None: any)."""
        # Of a login there, whatever we have; but for the way to a mirror.
        kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **kept}
        environment |= {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        if certificates := os.environ.get("PIP_CERT"):
            (self.root / CERTIFICATES[1:]).write_bytes(Path(certificates).read_bytes())
            environment["PIP_CERT"] = CERTIFICATES
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd"]
        done = subprocess.run(
            [*inside, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert status is None or done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout


@contextmanager
def running(root: Path) -> Iterator[System]:
    """The system of a tree, for the block."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INIT, "init", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        try:
            yield System(root, int(child))
        finally:
            os.kill(int(child), signal.SIGKILL)
            process.wait()


def debootstrap(root: Path, suite: str) -> None:
    """Make a Debian with nothing but apt, which reaches the mirror as this machine does."""
    options = [f"--aptopt={setting.removesuffix(';')}" for setting in host_transport()]
    subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", *options, suite, str(root), MIRROR], check=True)
    (root / "etc/apt/apt.conf.d/90host").write_text("".join(f"{setting}\n" for setting in host_transport()))
    mirror, security = host_mirrors(Path("/etc/apt"))
    suites = [(mirror, suite), (mirror, f"{suite}-updates"), (security, f"{suite}-security")]
    (root / "etc/apt/sources.list").write_text("".join(f"deb {at} {name} main\n" for at, name in suites))
    for name in ("etc/resolv.conf", "etc/hosts"):
        (root / name).write_bytes(Path("/", name).read_bytes())
