"""OCI runtime configurations (config.json) that the guest's crun runs. Pure: dictionaries in, dictionaries out.

`build` makes one with the defaults that people know from docker and podman. `for_guest` changes one that was made for a
host, field by field as `fields` says. Neither names a cgroup: that is the agent's.
"""

import copy
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata_runtime.errors import RootfsError
from kata_runtime.oci.disks import DiskNode, disk_nodes, others
from kata_runtime.oci.fields import CONFIG, PROCESS, examine
from kata_runtime.oci.kernel_files import own_mount
from kata_runtime.oci.resources import NO_DEVICES, SAME_EVERYWHERE, translate

__all__ = [
    "SHM",
    "ContainerConfig",
    "GuestSpec",
    "HostMount",
    "Spec",
    "User",
    "build",
    "ensure_dev",
    "for_guest",
    "guest_process",
    "merge_env",
]

Spec = dict[str, Any]

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The guest's network is the container's: tap devices and addresses belong to the guest's own network namespace.
NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")
# moby profiles and containers/common agree on these, CAP_AUDIT_WRITE, CAP_MKNOD and CAP_NET_RAW being docker's.
CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Linux's own default of fs.nr_open.
_MAX_OPEN_FILES = 1 << 20
_TYPES = frozenset({*NAMESPACES, "network", "user", "time"})


@dataclass(frozen=True, slots=True)
class User:
    """Whom a process runs as; `groups` are supplementary ones."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """What a container shall be.

    `rootfs` is a path in the guest, `env` has entries `K=V`. `memory` (bytes) and `cpus` limit the container inside its
    guest; None leaves the guest's own size as the limit.
    """

    args: tuple[str, ...]
    rootfs: str
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: User = field(default_factory=User)
    terminal: bool = False
    hostname: str = ""
    readonly: bool = False
    no_new_privileges: bool = False
    cpus: float | None = None
    memory: int | None = None


def merge_env(*layers: Sequence[str]) -> tuple[str, ...]:
    """`K=V` entries of all layers; a later one replaces an earlier one of the same name, in its place."""
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            merged[entry.partition("=")[0]] = entry
    return tuple(merged.values())


def build(config: ContainerConfig) -> Spec:
    """config.json of a new container.

    Besides what `config.env` says, PATH, HOME, HOSTNAME and, with a terminal, TERM are set as docker does. The rest of
    the defaults: docker's capabilities (only the bounding set for users other than root), masked and read-only paths,
    and a private namespace of each kind but network.
    """
    defaults = [DEFAULT_PATH, f"HOME={config.user.home}"]
    defaults += [f"HOSTNAME={config.hostname}"] if config.hostname else []
    defaults += ["TERM=xterm"] if config.terminal else []
    process: Spec = {
        "terminal": config.terminal,
        "user": {"uid": config.user.uid, "gid": config.user.gid, "additionalGids": list(config.user.groups)},
        "args": list(config.args),
        "env": list(merge_env(defaults, config.env)),
        "cwd": config.cwd,
        "capabilities": capabilities(config.user.uid),
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": _MAX_OPEN_FILES, "hard": _MAX_OPEN_FILES}],
        "noNewPrivileges": config.no_new_privileges,
    }
    spec: Spec = {
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": {"path": config.rootfs, "readonly": config.readonly},
        "mounts": _default_mounts(),
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "resources": _resources(config),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if config.hostname:
        spec["hostname"] = config.hostname
    return spec


def capabilities(uid: int) -> dict[str, list[str]]:
    """Docker's default capabilities for a process of user `uid`.

    Only root gets them as effective; for others execve(2) would drop them anyway. None are inheritable
    (CVE-2022-24769).
    """
    held = list(CAPABILITIES) if uid == 0 else []
    return {"bounding": list(CAPABILITIES), "effective": held, "permitted": list(held)}


# Shared memory, in a container.
SHM = "/dev/shm"  # noqa: S108 -- a mount point
_HIDDEN = ("nosuid", "noexec", "nodev")


def _default_mounts() -> list[Spec]:
    hidden = [*_HIDDEN]
    table: tuple[tuple[str, str, list[str]], ...] = (
        ("/proc", "proc", hidden),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        (SHM, "tmpfs", [*hidden, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", hidden),
        ("/sys", "sysfs", [*hidden, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*hidden, "relatime", "ro"]),
    )
    return [{"destination": at, "type": kind, "source": kind, "options": list(options)} for at, kind, options in table]


def _resources(config: ContainerConfig) -> Spec:
    resources: Spec = {"devices": [dict(rule) for rule in NO_DEVICES]}
    if config.cpus is not None:
        period = 100_000  # µs, the kernel's own default
        # A quota under 1 ms is refused by the kernel.
        resources["cpu"] = {"period": period, "quota": max(1000, math.ceil(config.cpus * period))}
    if config.memory is not None:
        resources["memory"] = {"limit": config.memory}
    return resources


@dataclass(frozen=True, slots=True)
class HostMount:
    """Something of the host that a container mounts.

    Show `source` (host; a file or a directory) under `name` in the guest's directory of mounts; `readonly` says that
    the container never writes to it (`deep`: nor to what is mounted below it), `follows` that it is to see what the
    host mounts below it later.
    """

    source: str
    name: str
    destination: str
    readonly: bool
    follows: bool = False
    deep: bool = False


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A specification made fit for the guest.

    `mounts` are to be shared with the guest, `disks` are nodes for block devices that it is to be given. `hooks` are
    those that the specification wants run on the host. `notes` say, for a log, what is not applied: `field: why`.
    """

    spec: Spec
    mounts: tuple[HostMount, ...]
    hooks: Mapping[str, Any]
    notes: tuple[str, ...]
    disks: tuple[DiskNode, ...] = ()


def for_guest(
    spec: Mapping[str, Any],
    *,
    rootfs: str,
    mounts: str,
    bundle: str = "/",
    shm: str = "",
    volumes: Mapping[str, str] | None = None,
    member: bool = False,
    disable_guest_seccomp: bool = False,
) -> GuestSpec:
    """A valid specification that was made for a host, changed to run in a guest; `spec` itself stays as it is.

    `rootfs` and `mounts` are directories in the guest: the container's root, and where the caller shows the host's
    files (each `HostMount` under its name). Relative sources of mounts are relative to `bundle` (host). `shm` is the
    guest's directory that stands for shared memory of the host's at /dev/shm; without it the container has its own.
    `volumes` are sources of mounts (host) that the guest has by itself, and where.
    `member` says that the container joins a sandbox that others have as well.

    Raises:
        RootfsError: it asks for what a guest can't be given; the message names the fields.
    """
    kept = examine(spec, CONFIG)
    notes = list(kept.notes)
    result: Spec = kept.value
    linux: Spec = result.get("linux") or {}
    shared: list[HostMount] = []
    places = _Places(mounts, bundle, shm, volumes or {})
    listed = [_guest_mount(mount, places, shared, notes) for mount in result.get("mounts") or ()]
    asked = linux.get("resources") or {}
    disks, lacking = disk_nodes(linux.get("devices") or (), asked.get("devices") or ())
    resources, said = translate({**asked, "devices": others(asked.get("devices") or (), disks)}, "linux.resources")
    notes += (*said, *lacking)
    namespaces = _guest_namespaces(linux, member=member, notes=notes)
    result.update(
        ociVersion=OCI_VERSION,
        root={"path": rootfs, "readonly": bool((result.get("root") or {}).get("readonly"))},
        mounts=listed,
        linux={
            **{name: value for name, value in linux.items() if value and name != "cgroupsPath"},
            "namespaces": namespaces,
            "resources": resources,
            "devices": _guest_devices(linux.get("devices") or (), notes),
            "sysctl": dict(linux.get("sysctl") or {}),  # the agent sets those of the network
        },
        annotations={},  # crun takes orders by them
    )
    if not any(entry["type"] == "user" for entry in namespaces):
        result["linux"].pop("uidMappings", None)
        result["linux"].pop("gidMappings", None)
    if disable_guest_seccomp and result["linux"].pop("seccomp", None):
        notes.append("linux.seccomp: [runtime] disable_guest_seccomp is set")
    hooks = {kind: value for kind, value in (result.pop("hooks", None) or {}).items() if value}
    if "startContainer" in hooks:  # the only kind whose path is one in the container
        result["hooks"] = {"startContainer": hooks.pop("startContainer")}
    empty = [name for name, value in result.items() if not value]
    for name in empty:
        del result[name]
    return GuestSpec(copy.deepcopy(result), tuple(shared), copy.deepcopy(hooks), tuple(notes), tuple(disks))


def ensure_dev(spec: Spec) -> bool:
    """Give a specification without a mount at /dev the usual one; whether it had none.

    Else crun would make the devices in the root file system, where they would be the host's, too: no guest may.
    """
    if any(
        posixpath.normpath(posixpath.join("/", mount["destination"])) == "/dev" for mount in spec.get("mounts") or ()
    ):
        return False
    usual = next(dict(entry) for entry in _default_mounts() if entry["destination"] == "/dev")
    spec["mounts"] = [usual, *(spec.get("mounts") or ())]
    return True


def guest_process(process: Mapping[str, Any]) -> tuple[Spec, tuple[str, ...]]:
    """A valid OCI process that was made for a host, changed to run in a guest (exec), and what of it is noted.

    Raises:
        RootfsError: it asks for what a guest can't give; the message names the fields.
    """
    kept = examine(process, PROCESS, "process")
    return copy.deepcopy(kept.value), kept.notes


def _guest_namespaces(linux: Mapping[str, Any], *, member: bool, notes: list[str]) -> list[Spec]:
    """The guest's own of each kind but the network's. The agent makes those of IPC and UTS the sandbox's, but for one
    with an empty path, which a member's specification names without a path.

    One of time means nothing without offsets, which are refused: it is left out.
    """
    asked: dict[str, str] = {}
    for index, entry in enumerate(linux.get("namespaces") or ()):
        kind, path = entry["type"], str(entry.get("path") or "")
        if kind not in _TYPES:
            raise RootfsError(f"linux.namespaces[{index}].type: {kind!r} is no namespace of Linux")
        if kind in asked:
            raise RootfsError(f"linux.namespaces[{index}].type: there are two {kind} namespaces")
        asked[kind] = path
        joins = kind == "network" or (kind == "user" and linux.get("uidMappings"))
        if path and not joins and not (member and kind in ("pid", "ipc", "uts")):
            raise RootfsError(
                f"linux.namespaces[{index}].path can't be had in a VM: {path[:100]} is a namespace of the host",
                hint="leave the path out" + (" or give uidMappings and gidMappings" if kind == "user" else ""),
            )
    for kind in ("pid", "ipc"):
        if asked and kind not in asked:
            notes.append(f"linux.namespaces: without {kind} it would be the host's, which a VM can't share")
    result: list[Spec] = []
    for kind in NAMESPACES:
        own = member and kind in ("ipc", "uts") and asked.get(kind) == ""
        result.append({"type": kind, "path": ""} if own else {"type": kind})
    if "user" in asked:
        result.append({"type": "user"})
    return result


def _guest_devices(devices: Sequence[Mapping[str, Any]], notes: list[str]) -> list[Spec]:
    kept = []
    for index, device in enumerate(devices):
        if device.get("type") in ("c", "u") and (device.get("major"), device.get("minor")) in SAME_EVERYWHERE:
            kept.append(dict(device))
        elif device.get("type") != "b":  # see `disk_nodes`
            notes.append(f"linux.devices[{index}]: the guest doesn't have the host's {device.get('path')}")
    return kept


# File systems that the guest's kernel makes itself.
_KERNEL_FILESYSTEMS = {"cgroup", "cgroup2", "devpts", "mqueue", "proc", "ramfs", "sysfs", "tmpfs"}
# The options of mounts that see what is mounted below them later.
_FOLLOWING = ("shared", "rshared", "slave", "rslave")


@dataclass(frozen=True, slots=True)
class _Places:
    """See `for_guest`: what it is told about where things are."""

    mounts: str
    bundle: str
    shm: str
    volumes: Mapping[str, str]


def _guest_mount(mount: Mapping[str, Any], places: _Places, shared: list[HostMount], notes: list[str]) -> Spec:
    destination, kind = mount["destination"], mount.get("type") or ""
    options = list(mount.get("options") or ())
    if kind != "bind" and not {"bind", "rbind"} & set(options):
        if kind not in _KERNEL_FILESYSTEMS:
            raise RootfsError(
                f"mount at {destination}: a file system of type {kind or 'none'!r} can't be given to the guest",
                hint="mount it on the host and use a bind mount",
            )
        return {**mount, "options": options}
    if destination == SHM:  # memory can't be shared with the host: the guest has its own
        if places.shm:
            return {"destination": destination, "type": "bind", "source": places.shm, "options": ["rbind", *_HIDDEN]}
        return next(dict(entry) for entry in _default_mounts() if entry["destination"] == destination)
    source = posixpath.normpath(posixpath.join(places.bundle, mount.get("source") or ""))
    # The propagation of the host's mounts ends at the guest's border.
    local = [option for option in options if option not in _FOLLOWING]
    if source in places.volumes:
        return {"destination": destination, "type": "bind", "source": places.volumes[source], "options": local}
    if own := own_mount(source, destination, options, notes):
        return own
    name = f"{len(shared):03d}-{re.sub(r'[^A-Za-z0-9._-]', '_', posixpath.basename(destination))[:64]}"
    # The last one wins, as with mount(8); rro is runc's and crun's word for a read-only mount with all below it.
    access = [option for option in options if option in ("ro", "rro", "rw", "rrw")]
    readonly = bool(access) and access[-1] in ("ro", "rro")
    follows, deep = bool(set(options) & set(_FOLLOWING)), readonly and "rro" in access
    shared.append(HostMount(source, name, destination, readonly, follows, deep))
    return {"destination": destination, "type": "bind", "source": f"{places.mounts}/{name}", "options": local}
