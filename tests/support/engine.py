"""What stands above containerd: Docker and nerdctl, by their command lines."""

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.containerd import Containerd
from support.netns import Netns

__all__ = ["Engine"]

# A guest that is emulated on a busy machine.
TIMEOUT = 120


@dataclass
class Engine:
    """A command line (docker, nerdctl) and where it is run. `image` is busybox, `bridge` what `run` needs for one."""

    command: tuple[str | Path, ...]
    image: str
    network: Netns
    containerd: Containerd
    environment: dict[str, str]
    bridge: tuple[str, ...] = ()

    def __call__(
        self, *arguments: str | Path, data: bytes | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[bytes]":
        done = subprocess.run(
            [*self.network.prefix, *self.command, *arguments],
            input=data,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            env=self.environment,
        )
        assert not check or done.returncode == 0, (arguments, done)
        return done

    def on_a_terminal(self, *arguments: str | Path) -> str:
        """What it prints on a terminal."""
        command = shlex.join(map(str, [*self.network.prefix, *self.command, *arguments]))
        script = ["script", "--quiet", "--return", "--command", command, os.devnull]
        done = subprocess.run(script, capture_output=True, check=True, timeout=TIMEOUT, env=self.environment)
        return done.stdout.decode()

    def says(self, *arguments: str | Path) -> str:
        """What it prints on stdout."""
        return self(*arguments).stdout.decode().strip()
