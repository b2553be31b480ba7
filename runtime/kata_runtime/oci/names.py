"""The names of a container's machine: what its specification says, or the host's where it asks for the host's."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kata_common.ids import MAX_HOSTNAME, is_hostname
from kata_runtime.errors import RootfsError

__all__ = ["Names", "names_of"]


class Names(NamedTuple):
    """Host and (NIS) domain name; an empty one is whatever the guest has."""

    hostname: str
    domainname: str = ""


def names_of(spec: Mapping[str, Any]) -> Names:
    """The names that a sandbox gets from its own container's specification.

    Without a UTS namespace they are the host's, and can't be others, as with runc.

    Raises:
        RootfsError: a name is too long, or is given without a namespace for it.
    """
    given = Names(str(spec.get("hostname") or ""), str(spec.get("domainname") or ""))
    for field, name in given._asdict().items():
        if not is_hostname(name):
            raise RootfsError(f"{field} has {len(name.encode())} bytes", hint=f"Linux takes {MAX_HOSTNAME}")
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    if namespaces and not any(entry["type"] == "uts" for entry in namespaces):
        if field := next((field for field, name in given._asdict().items() if name), ""):
            raise RootfsError(
                f"{field} can't be set: linux.namespaces has no uts, so the host's is asked for",
                hint=f"leave {field} out, or add a uts namespace",
            )
        return Names(socket.gethostname(), _host_domain())
    return given


def _host_domain() -> str:
    domain = Path("/proc/sys/kernel/domainname").read_text().strip()
    return "" if domain == "(none)" else domain
