"""The OCI specification as it comes from the host, and as this guest needs it. Pure: no I/O.

Fields: OCI runtime specification 1.0, config.md and config-linux.md.
"""

import re
from typing import Any, Final

from kata_agent.errors import InvalidError
from kata_common.documents import parse_json
from kata_common.ids import RULE, is_id

__all__ = [
    "GUEST_NAMESPACES",
    "Spec",
    "check_id",
    "guest_spec",
    "network_sysctls",
    "parse",
    "process_of",
    "resources_of",
]

Spec = dict[str, Any]

# Environments may have megabytes (execve(2) takes six); the host has the same limit.
MAX_SPEC: Final = 8 << 20
_SYSCTL = re.compile(r"net(/[A-Za-z0-9_.-]+)+\Z")
# A container has the guest's network: isolation is the VM's, devices and addresses are set there.
GUEST_NAMESPACES: Final = frozenset({"network"})


def check_id(value: str, what: str) -> str:
    """`value`, which is safe as a file name. Raises InvalidError."""
    if not is_id(value):
        raise InvalidError(f"{what} {value[:100]!r} is not valid: {RULE}")
    return value


def parse(data: bytes, what: str) -> Spec:
    """The JSON object in `data`. Raises InvalidError."""
    if len(data) > MAX_SPEC:
        raise InvalidError(f"{what} has {len(data)} bytes, more than {MAX_SPEC}")
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidError(f"{what} is not a JSON object")
    return value


def process_of(spec: Spec, what: str) -> Spec:
    """Check what this agent itself relies on in an OCI process. Raises InvalidError."""
    args = spec.get("args")
    if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
        raise InvalidError(f"{what} has no args: a list of strings, the command first")
    if not isinstance(spec.get("cwd", "/"), str):
        raise InvalidError(f"{what} has a cwd that is no string")
    spec.setdefault("cwd", "/")
    spec.setdefault("user", {"uid": 0, "gid": 0})
    # Nothing in the guest's kernel answers to these; crun would fail on them.
    spec.pop("apparmorProfile", None)
    spec.pop("selinuxLabel", None)
    return spec


def network_sysctls(spec: Spec) -> dict[str, str]:
    """Take the sysctls of the network out of `spec`: a container has none of its own, so crun would refuse them.

    Returns their values by path below /proc/sys. Raises InvalidError.
    """
    linux = spec.get("linux")
    listed = linux.get("sysctl") if isinstance(linux, dict) else None
    if not isinstance(listed, dict):
        return {}
    found = {}
    for name in [name for name in listed if name.startswith(("net.", "net/"))]:
        value = listed.pop(name)
        # As sysctl(8): the first separator is the one, so that net/ipv4/conf/eth0.5/… can be told.
        path = name if "/" in name else name.replace(".", "/")
        if not isinstance(value, str) or not _SYSCTL.match(path) or {".", ".."} & set(path.split("/")):
            raise InvalidError(f"sysctl {name[:80]!r} of the OCI specification is malformed")
        found[path] = value
    return found


def guest_spec(spec: Spec, *, cgroup: str, shared: dict[str, str]) -> Spec:
    """`spec` (changed in place) with the cgroup that is ours and the namespaces that the sandbox shares.

    `shared` maps a namespace's type to the path of the sandbox's, which each container has but one whose own entry has
    an empty path. Raises InvalidError.
    """
    process = spec.get("process")
    if not isinstance(process, dict):
        raise InvalidError("the OCI specification has no process")
    process_of(process, "process of the OCI specification")
    root = spec.get("root")
    if not isinstance(root, dict) or not isinstance(root.get("path"), str) or not root["path"].startswith("/"):
        raise InvalidError("root.path of the OCI specification is not an absolute path in the guest")
    linux = spec.setdefault("linux", {})
    if not isinstance(linux, dict) or not isinstance(linux.get("namespaces", []), list):
        raise InvalidError("linux of the OCI specification is malformed")
    linux["cgroupsPath"] = cgroup
    linux.pop("mountLabel", None)
    namespaces = []
    for entry in linux.get("namespaces", []):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(kind, str):
            raise InvalidError("a namespace of the OCI specification has no type")
        if kind in GUEST_NAMESPACES:
            continue
        joins = kind in shared and entry.get("path") != ""
        namespaces.append({"type": kind, "path": shared[kind]} if joins else {"type": kind})
        if joins and kind == "uts":
            # The sandbox's UTS namespace has its names already.
            spec.pop("hostname", None)
            spec.pop("domainname", None)
    linux["namespaces"] = namespaces
    return spec


def resources_of(spec: Spec) -> Spec:
    """linux.resources of `guest_spec`'s result; changes to it are changes to the specification. Raises InvalidError."""
    resources = spec["linux"].setdefault("resources", {})
    if not isinstance(resources, dict):
        raise InvalidError("linux.resources of the OCI specification is malformed")
    return resources
