"""Which network namespace a container's specification means. Pure but for looking whether a file is there."""

import logging
import re
from pathlib import Path

from kata_runtime.oci.spec import Spec

__all__ = ["network_namespace"]

_log = logging.getLogger("kata.oci")

# Docker's sandboxes (libnetwork, osl/namespace_linux.go), where its exec-root is the default one.
_DOCKER = (Path("/var/run/docker/netns"), Path("/run/docker/netns"))
_DOCKER_ID = re.compile(r"[0-9a-f]{12,64}")
# What some engines say for "none yet".
_NOBODYS = "/proc/0/"


def network_namespace(spec: Spec, docker: tuple[Path, ...] = _DOCKER) -> str:
    """The path of the network namespace that a VM's interfaces shall come from; empty: of a new one.

    Without a path in the specification, a hook of Docker's may name it. Where the specification wants the host's
    network (no network namespace at all), the guest gets an empty one: Kata does so, and a VM can't have the host's.
    """
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    entry = next((entry for entry in namespaces if entry["type"] == "network"), None)
    if entry is None:
        _log.warning("the container wants the host's network, which a VM can't share: it gets none")
        return ""
    path = str(entry.get("path") or "")
    if path and not path.startswith(_NOBODYS):
        return path
    return _docker_path(spec, docker)


def _docker_path(spec: Spec, places: tuple[Path, ...]) -> str:
    """Where Docker's `libnetwork-setkey` hook has its namespace, if that is there already."""
    hooks = spec.get("hooks") or {}
    for kind in ("prestart", "createRuntime"):
        for hook in hooks.get(kind) or ():
            arguments = [str(word) for word in hook.get("args") or ()]
            if "libnetwork-setkey" not in arguments:
                continue
            for word in arguments[arguments.index("libnetwork-setkey") + 1 :]:
                for place in places if _DOCKER_ID.fullmatch(word) else ():
                    if (place / word).is_file():
                        return str(place / word)
    return ""
