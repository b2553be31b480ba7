"""What a container's specification says of the sandbox."""

import os
from dataclasses import dataclass
from pathlib import Path

from kata_common.files import is_file
from kata_runtime.oci.limits import NOTHING, Asked, asked_by
from kata_runtime.oci.names import names_of
from kata_runtime.oci.network import network_namespace
from kata_runtime.oci.spec import SHM, Spec

__all__ = ["SandboxSpec"]

_RESOLV_CONF = "/etc/resolv.conf"
# Bytes; longer than any that is of use.
_RESOLV_CONF_LENGTH = 16 << 10


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox's own container says of it, read once.

    `shm_size` (bytes) is that of the shared memory which whoever made the container has made for it on the host, 0
    where there is none; `netns` is as in `network_namespace`; `dns` are lines of a resolv.conf.
    `asked` is what its own processes may use, `pod_asked` what all containers of its pod may.
    """

    hostname: str = ""
    domainname: str = ""
    shm_size: int = 0
    netns: str = ""
    dns: tuple[str, ...] = ()
    cgroups_path: str = ""
    oom_score_adj: int | None = None
    asked: Asked = NOTHING
    pod_asked: Asked = NOTHING

    @classmethod
    def of(cls, spec: Spec) -> "SandboxSpec":
        """What a valid specification says; looks at files that it names.

        Raises:
            RootfsError: it can't have its names.
            ConfigError: an annotation is none.
        """
        names = names_of(spec)
        return cls(
            hostname=names.hostname,
            domainname=names.domainname,
            shm_size=_shm_size(spec),
            netns=network_namespace(spec),
            dns=_resolver(spec),
            cgroups_path=str((spec.get("linux") or {}).get("cgroupsPath") or ""),
            asked=asked_by(spec, pod=False),
            pod_asked=asked_by(spec, pod=True),
            oom_score_adj=(spec.get("process") or {}).get("oomScoreAdj"),
        )


def _resolver(spec: Spec) -> tuple[str, ...]:
    """What the container is given as resolv.conf, for the guest's own; as Kata does it (kata_agent.go, getDNS)."""
    for mount in spec.get("mounts") or ():
        source = Path(mount.get("source") or "")
        if mount["destination"] == _RESOLV_CONF and is_file(source):  # a fifo would be waited for
            try:
                with source.open("rb") as file:
                    return tuple(file.read(_RESOLV_CONF_LENGTH).decode(errors="replace").splitlines())
            except OSError:
                return ()
    return ()


def _shm_size(spec: Spec) -> int:
    for mount in spec.get("mounts") or ():
        if mount["destination"] == SHM and "tmpfs" not in (mount.get("type") or ""):
            try:
                found = os.statvfs(mount.get("source") or "")
            except OSError:
                return 0
            return found.f_blocks * found.f_frsize
    return 0
