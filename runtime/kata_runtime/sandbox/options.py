"""What a sandbox is asked for, and the states that it goes through."""

import os
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from kata_common.ids import MAX_HOSTNAME, is_hostname
from kata_runtime.errors import SandboxError
from kata_runtime.image import DEFAULT_OUTPUT
from kata_runtime.oci.limits import Asked
from kata_runtime.sandbox.network.publish import Published
from kata_runtime.sandbox.placement import Placement
from kata_runtime.sandbox.sizing import Sizes
from kata_runtime.sandbox.state import Directories
from kata_runtime.sandbox.template.clone import obtain_vm
from kata_runtime.sandbox.vm import StartVm

__all__ = ["SandboxOptions", "SandboxState"]


class SandboxState(StrEnum):
    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class SandboxOptions:
    """What one sandbox is asked for; the rest is in the configuration. `logs_dir` keeps its logs after its end.

    With `share_pid` containers may live in one pid namespace: that of the first one or, with `hold_pid`, one that ends
    with no container. `shm_size` is that of the memory which they share at /dev/shm, in bytes; 0: each has its own.
    `netns` is the path of the network namespace whose interfaces the guest gets, empty for a new one; None: no network.
    `dns` are the lines of the guest's own resolv.conf. Connections to the namespace's localhost with
    `forward_localhost`, and to `published` ports of this host, reach the guest's. `placement` is its place in cgroups;
    None is its maker's. `obtain_vm` makes the VM, of `sizes` or as `asked`: a clone of a template, or by a boot.
    """

    hostname: str = ""
    domainname: str = ""
    share_pid: bool = False
    hold_pid: bool = False
    shm_size: int = 0
    netns: str | None = None
    dns: tuple[str, ...] = ()
    forward_localhost: bool = False
    published: tuple[Published, ...] = ()
    placement: Placement | None = None
    sizes: Sizes = field(default_factory=Sizes)
    asked: Asked = field(default_factory=Asked)
    directories: Directories = field(default_factory=Directories)
    image_dir: Path = DEFAULT_OUTPUT
    logs_dir: Path | None = None
    obtain_vm: StartVm = obtain_vm

    def __post_init__(self) -> None:
        if not is_hostname(self.hostname):
            raise SandboxError(
                f"the host name {self.hostname[:100]!r} has {len(self.hostname.encode())} bytes",
                hint=f"Linux takes {MAX_HOSTNAME}; without one the sandbox's id is used, as far as it goes",
            )

    def from_environment(self, sandbox_id: str) -> "SandboxOptions":
        """For developers and tests: KATA_LOGS_DIR keeps the logs of sandboxes, KATA_IMAGE_DIR has another image."""
        keep, image = os.environ.get("KATA_LOGS_DIR"), os.environ.get("KATA_IMAGE_DIR")
        return replace(
            self,
            logs_dir=Path(keep) / sandbox_id if keep else self.logs_dir,
            image_dir=Path(image).absolute() if image else self.image_dir,
        )
