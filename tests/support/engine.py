"""What stands above containerd: Docker and nerdctl, by their command lines."""

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
    """A command line (docker, nerdctl) and where it is run. `image` is busybox."""

    command: tuple[str | Path, ...]
    image: str
    network: Netns
    containerd: Containerd
    environment: dict[str, str]

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

    def says(self, *arguments: str | Path) -> str:
        """What it prints on stdout."""
        return self(*arguments).stdout.decode().strip()
