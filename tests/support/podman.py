"""Debian's Podman on directories of its own, with our runtime or another one."""

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.bundles import IMAGE
from support.kata import TIMEOUT, Kata

__all__ = ["BUSY", "Podman", "missing"]

BUSY = "localhost/busy:latest"
_ENGINE = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{home}/libpod"
static_dir = "{home}/static"
volume_path = "{home}/volumes"
infra_image = "{image}"
[network]
network_backend = "{network}"
network_config_dir = "{home}/networks"
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""
_STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{home}/graph"
runroot = "{home}/run"
"""
# Podman hands on neither environment nor options.
_WRAPPER = """\
#!/bin/sh
{exports}
exec {program} --root {home}/oci --config {config} "$@"
"""


def missing() -> str:
    """Why there is no Podman; empty where there is one."""
    absent = [name for name in ("podman", "conmon", "runc") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


@dataclass(frozen=True)
class Podman:
    """Podman with everything that it keeps below `home`."""

    home: Path
    kata: Kata
    # What runs it elsewhere, as in a network namespace.
    prefix: tuple[str, ...] = ()
    network: str = "netavark"

    def prepare(self) -> None:
        """Write its configuration, and import an image of busybox."""
        (self.home / "tmp").mkdir(parents=True)
        (self.home / "containers.conf").write_text(_ENGINE.format(home=self.home, image=BUSY, network=self.network))
        (self.home / "storage.conf").write_text(_STORAGE.format(home=self.home))
        command = self.kata.command()
        kept = {name: value for name, value in self.kata.env().items() if name.startswith("KATA_")}
        wrapper = self.home / "kata-runtime"
        wrapper.write_text(
            _WRAPPER.format(
                exports="\n".join(f"export {name}='{value}'" for name, value in kept.items()),
                program=command[0],
                home=self.home,
                config=command[2],
            )
        )
        wrapper.chmod(0o755)
        archive = self.home / "busy.tar"
        subprocess.run(["tar", "-C", IMAGE / "default-rootfs", "-cf", archive, "."], check=True)
        done = self("import", str(archive), BUSY.removeprefix("localhost/"))
        assert done.returncode == 0, done.stderr

    @property
    def root(self) -> Path:
        """The `--root` of the runtime's commands."""
        return self.home / "oci"

    @property
    def environment(self) -> dict[str, str]:
        """That of its commands."""
        return {
            **os.environ,
            "CONTAINERS_CONF": str(self.home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
            "TMPDIR": str(self.home / "tmp"),
        }

    def argv(self, *arguments: str, runtime: str = "") -> list[str]:
        """The command line of `podman ARGUMENTS`."""
        return [*self.prefix, "podman", "--runtime", runtime or str(self.home / "kata-runtime"), *arguments]

    def __call__(
        self, *arguments: str, runtime: str = "", stdin: bytes | None = None, timeout: float = TIMEOUT
    ) -> "subprocess.CompletedProcess[str]":
        """Run `podman ARGUMENTS` to its end."""
        command = self.argv(*arguments, runtime=runtime)
        done = subprocess.run(
            command, env=self.environment, input=stdin or b"", capture_output=True, timeout=timeout, check=False
        )
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def close(self) -> None:
        """Remove all containers, pods and images."""
        for arguments in (("pod", "rm", "-f", "-a"), ("rm", "-f", "-a"), ("rmi", "-f", "-a")):
            self(*arguments)
        # Of storage: mounted over themselves by Podman.
        for name in ("graph", "run"):
            subprocess.run(["umount", "-R", "-q", self.home / name], check=False, capture_output=True)
        shutil.rmtree(self.home)
        # Podman never removes the parent of all its cgroups. One that is still in use stays.
        for parent in Path("/sys/fs/cgroup").glob("**/libpod_parent"):
            for directory, _, _ in os.walk(parent, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
