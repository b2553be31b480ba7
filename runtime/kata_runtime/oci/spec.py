"""OCI runtime configurations (config.json) that the guest's crun runs. Pure: dictionaries in, dictionaries out.

`build` makes one with the defaults that people know from docker and podman. `for_guest` changes one that was made for a
host. Neither names a cgroup: that is the agent's. Field names are the OCI runtime specification's (1.0.2).
"""

import copy
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata_runtime.errors import RootfsError

__all__ = [
    "SHM",
    "ContainerConfig",
    "GuestSpec",
    "HostMount",
    "Spec",
    "User",
    "build",
    "for_guest",
    "guest_process",
    "guest_resources",
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
# Every device but the pseudo devices that crun allows by itself (null, zero, full, tty, random, urandom, pts...): with
# CAP_MKNOD a container could otherwise reach the disk that the guest's agent runs from.
_DEVICE_RULES = ({"allow": False, "access": "rwm"},)
# fs.nr_open of a guest; a higher RLIMIT_NOFILE, as systemd's "infinity" on hosts, would fail with EPERM.
_MAX_OPEN_FILES = 1 << 20
# mem, zero and their kin, and the terminal devices: the numbers mean the same in every kernel (Linux's devices.txt).
_SAME_EVERYWHERE = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}


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
    resources: Spec = {"devices": [dict(rule) for rule in _DEVICE_RULES]}
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
    the container never writes to it.
    """

    source: str
    name: str
    destination: str
    readonly: bool


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A specification made fit for the guest.

    `mounts` are to be shared with the guest. `hooks` are those that the specification wants run on the host.
    `dropped` says, for a log, what had no meaning in a guest.
    """

    spec: Spec
    mounts: tuple[HostMount, ...]
    hooks: Mapping[str, Any]
    dropped: tuple[str, ...]


def for_guest(
    spec: Mapping[str, Any],
    *,
    rootfs: str,
    mounts: str,
    bundle: str = "/",
    shm: str = "",
    disable_guest_seccomp: bool = True,
) -> GuestSpec:
    """A valid specification that was made for a host, changed to run in a guest; `spec` itself stays as it is.

    `rootfs` and `mounts` are directories in the guest: the container's root, and where the caller shows the host's
    files (each `HostMount` under its name). Relative sources of mounts are relative to `bundle` (host). `shm` is the
    guest's directory that stands for shared memory of the host's at /dev/shm; without it the container has its own.

    Namespaces are always private ones (never the agent's), but for the network's, which is the guest's. Limits of CPU
    time, memory and pids are kept; what names devices, CPUs or cgroups of the host is not. Unlike in Kata, limits of
    pids hold in the guest.

    Raises:
        RootfsError: it mounts a file system that a guest can't be given.
    """
    dropped: list[str] = []
    linux = spec.get("linux") or {}
    shared: list[HostMount] = []
    listed = [_guest_mount(mount, mounts, bundle, shm, shared, dropped) for mount in spec.get("mounts") or ()]
    result: Spec = {
        "ociVersion": OCI_VERSION,
        "process": guest_process(spec["process"]),
        "root": {"path": rootfs, "readonly": bool((spec.get("root") or {}).get("readonly"))},
        "mounts": [mount for mount in listed if mount is not None],
        "linux": {
            **_kept(linux, ("maskedPaths", "readonlyPaths", "rootfsPropagation", "personality")),
            "namespaces": _guest_namespaces(linux),
            "resources": _guest_resources(linux.get("resources") or {}, dropped),
            "devices": _guest_devices(linux.get("devices") or (), dropped),
            "sysctl": dict(linux.get("sysctl") or {}),  # the agent sets those of the network
        },
    }
    if any(entry["type"] == "user" for entry in result["linux"]["namespaces"]):
        result["linux"].update(_kept(linux, ("uidMappings", "gidMappings")))
    if linux.get("seccomp") and not disable_guest_seccomp:
        # A seccomp agent would listen on a socket of the host.
        refused = ("listenerPath", "listenerMetadata")
        result["linux"]["seccomp"] = {key: value for key, value in linux["seccomp"].items() if key not in refused}
    result.update(_kept(spec, ("hostname", "domainname")))
    hooks = {kind: value for kind, value in (spec.get("hooks") or {}).items() if value}
    if "startContainer" in hooks:  # the only kind whose path is one in the container
        result["hooks"] = {"startContainer": hooks.pop("startContainer")}
    return GuestSpec(copy.deepcopy(result), tuple(shared), copy.deepcopy(hooks), tuple(dropped))


def _kept(source: Mapping[str, Any], names: Sequence[str]) -> Spec:
    return {name: source[name] for name in names if source.get(name)}


def guest_process(process: Mapping[str, Any]) -> Spec:
    """A valid OCI process that was made for a host, changed to run in a guest (exec)."""
    # There is no LSM in the guest, and the host's CPUs are not the guest's.
    foreign = ("apparmorProfile", "selinuxLabel", "execCPUAffinity", "scheduler", "ioPriority")
    result = {key: value for key, value in process.items() if key not in foreign}
    limits = []
    for limit in process.get("rlimits") or ():
        most = _MAX_OPEN_FILES if limit["type"] == "RLIMIT_NOFILE" else 1 << 64
        limits.append({**limit, "soft": min(limit["soft"], most), "hard": min(limit["hard"], most)})
    if limits:
        result["rlimits"] = limits
    return result


def guest_resources(resources: Mapping[str, Any]) -> tuple[Spec, tuple[str, ...]]:
    """OCI's LinuxResources that change a running container's limits, for its guest, and what has no meaning there.

    Devices are not among them: what a container may use of the guest's is settled when it is made.
    """
    dropped: list[str] = []
    kept = _guest_resources(resources, dropped)
    del kept["devices"]
    return kept, tuple(dropped)


def _guest_namespaces(linux: Mapping[str, Any]) -> list[Spec]:
    kinds = [*NAMESPACES]
    if any(entry.get("type") == "user" and not entry.get("path") for entry in linux.get("namespaces") or ()):
        kinds.append("user")
    return [{"type": kind} for kind in kinds]


def _guest_resources(resources: Mapping[str, Any], dropped: list[str]) -> Spec:
    """Limits that have a meaning in the guest and that crun can set with cgroup v2."""
    kept = {
        "cpu": ("shares", "quota", "period", "burst", "idle"),
        "memory": ("limit", "reservation", "swap"),
        "pids": ("limit",),
    }
    result: Spec = {"devices": [dict(rule) for rule in _DEVICE_RULES]}
    for group, names in kept.items():
        values = {name: value for name, value in (resources.get(group) or {}).items() if name in names}
        if values:
            result[group] = values
    unified = resources.get("unified") or {}
    fit = {name: value for name, value in unified.items() if name.startswith(("cpu.", "memory.", "pids."))}
    if fit:
        result["unified"] = fit
    for group, values in resources.items():
        if group == "devices" or not values:
            continue
        if not isinstance(values, dict):
            dropped.append(f"resources.{group}")
            continue
        lost = sorted(name for name, value in values.items() if value and name not in result.get(group, {}))
        dropped += [f"resources.{group}.{name}" for name in lost]
    return result


def _guest_devices(devices: Sequence[Mapping[str, Any]], dropped: list[str]) -> list[Spec]:
    kept = []
    for device in devices:
        if device.get("type") in ("c", "u") and (device.get("major"), device.get("minor")) in _SAME_EVERYWHERE:
            kept.append(dict(device))
        else:
            dropped.append(f"device {device.get('path')}")
    return kept


# File systems that the guest's kernel makes itself.
_KERNEL_FILESYSTEMS = {"cgroup", "cgroup2", "devpts", "mqueue", "proc", "ramfs", "sysfs", "tmpfs"}
# Every kernel has its own; the host's must not be seen in the guest, nor the guest's in a container.
_KERNEL_DIRECTORIES = ("/dev", "/proc", "/sys")


def _guest_mount(
    mount: Mapping[str, Any], directory: str, bundle: str, shm: str, shared: list[HostMount], dropped: list[str]
) -> Spec | None:
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
        if shm:
            return {"destination": destination, "type": "bind", "source": shm, "options": ["rbind", *_HIDDEN]}
        return next(dict(entry) for entry in _default_mounts() if entry["destination"] == destination)
    source = posixpath.normpath(posixpath.join(bundle, mount.get("source") or ""))
    if any(source == kernel or source.startswith(f"{kernel}/") for kernel in _KERNEL_DIRECTORIES):
        dropped.append(f"mount of the host's {source} at {destination}")
        return None
    name = f"{len(shared):03d}-{re.sub(r'[^A-Za-z0-9._-]', '_', posixpath.basename(destination))[:64]}"
    shared.append(HostMount(source, name, destination, "ro" in options))
    # The propagation of the host's mounts ends at the guest's border.
    local = [option for option in options if option not in ("shared", "rshared", "slave", "rslave")]
    return {"destination": destination, "type": "bind", "source": f"{directory}/{name}", "options": local}
