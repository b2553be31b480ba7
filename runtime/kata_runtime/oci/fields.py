"""Every field of config.json, and what becomes of it: the one place where a field is applied, refused, or noted.

Names are those of the OCI runtime specification 1.3 (config.md, config-linux.md, config-vm.md). `examine` walks a
specification by this table, so that nothing in it can be dropped without a word: what is applied goes on, what is
refused is an error, what is noted is told to the log, and a name that the table does not have is noted as well (the
specification forbids an error there). docs/compatibility.md shows the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kata_runtime.errors import RootfsError

__all__ = ["CONFIG", "PROCESS", "RESOURCES", "Handling", "Kept", "Rule", "examine", "rows"]


class Handling(StrEnum):
    """What becomes of a field's value."""

    APPLIED = "applied"
    REFUSED = "refused"
    NOTED = "noted"


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a field. `says` is how it is applied, what to do instead (refused), or why it is no matter
    (noted); it may stand in a message. `members` are the fields below it, which fare alike; with `always` it asks for
    something wherever it stands, else only with a value that is neither zero nor empty.
    """

    handling: Handling
    says: str = ""
    members: tuple[str, ...] = ()
    always: bool = False


# A table: members by name (ANY: of whatever name), or one shape for all entries of a list.
Shape = Rule | Mapping[str, "Shape"] | Sequence["Shape"]
ANY = "*"


def _applied(says: str = "") -> Rule:
    return Rule(Handling.APPLIED, says)


def _refused(says: str, *members: str, always: bool = False) -> Rule:
    return Rule(Handling.REFUSED, says, members, always)


def _noted(says: str) -> Rule:
    return Rule(Handling.NOTED, says)


_KEPT = _applied("by crun, in the guest")
_OTHER_SYSTEM = _noted("for another operating system")
_ONE_NODE = "a VM's memory has one node"

PROCESS: Mapping[str, Shape] = {
    "terminal": _applied("containerd's own request decides; `run` by -t"),
    "consoleSize": {"height": _KEPT, "width": _KEPT},
    "user": {
        "uid": _KEPT,
        "gid": _KEPT,
        "umask": _KEPT,
        "additionalGids": _KEPT,
        "username": _OTHER_SYSTEM,
    },
    "args": _KEPT,
    "commandLine": _OTHER_SYSTEM,
    "env": _KEPT,
    "cwd": _KEPT,
    "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _KEPT),
    "rlimits": [{"type": _KEPT, "hard": _KEPT, "soft": _KEPT}],
    "noNewPrivileges": _KEPT,
    "apparmorProfile": _noted("its rules are of the host's kernel; the guest's has none loaded"),
    "oomScoreAdj": _applied("by crun, in the guest; of the sandbox's own container also to the VM and its helpers"),
    "scheduler": {
        name: _applied("by the agent")
        for name in ("policy", "nice", "priority", "flags", "runtime", "deadline", "period")
    },
    "selinuxLabel": _noted("its policy is of the host's kernel; the guest's has none loaded"),
    "ioPriority": {"class": _applied("by the agent"), "priority": _applied("by the agent")},
    "execCPUAffinity": {
        "initial": _applied("by the agent, for an exec; see linux.resources.cpu.cpus"),
        "final": _applied("by the agent, for an exec; see linux.resources.cpu.cpus"),
    },
}

_HOST_DEVICE = "a block device of the host has another number in the guest; leave it out: shared files are no block I/O"
_THROTTLE = _refused(_HOST_DEVICE, "[].major", "[].minor", "[].rate")
_CGROUP1 = _noted("cgroup v2, which the guest has, knows no such thing; runc ignores it there as well")
RESOURCES: Mapping[str, Shape] = {
    "devices": [
        {
            name: _applied("numbers that mean the same in every kernel, and rules for all devices; others are noted")
            for name in ("allow", "type", "major", "minor", "access")
        }
    ],
    "memory": {
        "limit": _KEPT,
        "reservation": _KEPT,
        "swap": _KEPT,
        "kernel": _CGROUP1,
        "kernelTCP": _CGROUP1,
        "swappiness": _CGROUP1,
        "disableOOMKiller": _refused("cgroup v2, which the guest has, can't switch it off; leave it out"),
        "useHierarchy": _noted("always so in cgroup v2"),
        "checkBeforeUpdate": _applied("by the agent"),
    },
    "cpu": {
        "shares": _KEPT,
        "quota": _KEPT,
        "burst": _applied("as cpu.max.burst"),
        "period": _KEPT,
        "realtimeRuntime": _refused("cgroup v2, which the guest has, can't limit it; leave it out"),
        "realtimePeriod": _refused("cgroup v2, which the guest has, can't limit it; leave it out"),
        "cpus": _applied("as many of the guest's CPUs, of the same numbers where it has them"),
        "mems": _noted(_ONE_NODE),
        "idle": _KEPT,
    },
    "pids": {"limit": _KEPT},
    "blockIO": {
        "weight": _applied("as io.weight, for block devices of the guest"),
        "leafWeight": _CGROUP1,
        "weightDevice": _refused(_HOST_DEVICE, "[].major", "[].minor", "[].weight", "[].leafWeight"),
        "throttleReadBpsDevice": _THROTTLE,
        "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE,
        "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": [
        {
            "pageSize": _applied("sizes that the guest has; a limit of 0 holds for others by itself"),
            "limit": _KEPT,
        }
    ],
    "network": {
        "classID": _refused("classes of the host's traffic are not seen from a VM; leave it out"),
        "priorities": _refused(
            "priorities of the host's interfaces are not seen from a VM; leave it out", "[].name", "[].priority"
        ),
    },
    "rdma": {ANY: _refused("a guest has no RDMA device; leave it out", ".hcaHandles", ".hcaObjects")},
    "unified": {ANY: _applied("files of the controllers that the guest has; none that names a device of the host")},
}

_ID_MAPPING: Shape = [{name: _applied("with a user namespace") for name in ("containerID", "hostID", "size")}]
_MOUNT_MAPPING = _refused(
    "the guest's kernel can't map ids of shared files; give them the ids that the container has",
    "[].containerID",
    "[].hostID",
    "[].size",
)
_HOOK_FIELDS = ("path", "args", "env", "timeout")


def _hook(says: str) -> Shape:
    return [{name: _applied(says) for name in _HOOK_FIELDS}]


_VM = "set it by an annotation io.katacontainers.config.hypervisor.* or in configuration.toml"
LINUX: Mapping[str, Shape] = {
    "uidMappings": _ID_MAPPING,
    "gidMappings": _ID_MAPPING,
    "sysctl": {ANY: _applied("those of the network for the whole guest")},
    "resources": RESOURCES,
    "cgroupsPath": _applied("to the sandbox's own container: the VM's cgroup on the host, beside it as kata_NAME"),
    "namespaces": [
        {
            "type": _applied("always private ones, but for the network's, which is the guest's"),
            "path": _applied("network: whose interfaces the guest gets; pid, ipc, uts: the sandbox's"),
        }
    ],
    "devices": [
        {
            name: _applied("block devices, and devices that are the same in every kernel; others are noted")
            for name in ("path", "type", "major", "minor", "fileMode", "uid", "gid")
        }
    ],
    "netDevices": {ANY: _refused("give the interface to the pod's network namespace instead", ".name", always=True)},
    "seccomp": {
        "defaultAction": _KEPT,
        "defaultErrnoRet": _KEPT,
        "architectures": _KEPT,
        "flags": _KEPT,
        "listenerPath": _refused(
            "a socket of the host can't be reached from a guest; use a profile without SCMP_ACT_NOTIFY"
        ),
        "listenerMetadata": _noted("is for listenerPath only"),
        "syscalls": [
            {
                "names": _KEPT,
                "action": _KEPT,
                "errnoRet": _KEPT,
                "args": [{"index": _KEPT, "value": _KEPT, "valueTwo": _KEPT, "op": _KEPT}],
            }
        ],
    },
    "rootfsPropagation": _KEPT,
    "maskedPaths": _KEPT,
    "readonlyPaths": _KEPT,
    "mountLabel": _noted("its policy is of the host's kernel; the guest's has none loaded"),
    "intelRdt": _refused(
        "cache and memory bandwidth are the host's to divide; leave it out",
        ".closID",
        ".schemata",
        ".l3CacheSchema",
        ".memBwSchema",
        ".enableMonitoring",
        ".enableCMT",
        ".enableMBM",
    ),
    "memoryPolicy": _refused(f"{_ONE_NODE}; leave it out", ".mode", ".nodes", ".flags"),
    "personality": {"domain": _KEPT, "flags": _KEPT},
    "timeOffsets": {
        ANY: _refused(
            "crun 1.8, which the guest has, can't set them with a pid namespace; leave them out", ".secs", ".nanosecs"
        )
    },
}

_ON_HOST = "on the host, with the VM's process id for the container's"
CONFIG: Mapping[str, Shape] = {
    "ociVersion": _applied("read as 1.3, whatever it says"),
    "process": PROCESS,
    "root": {"path": _applied("shared with the guest"), "readonly": _KEPT},
    "hostname": _applied("of the sandbox"),
    "domainname": _applied("of the sandbox"),
    "mounts": [
        {
            "destination": _KEPT,
            "type": _applied("bind, and file systems that a kernel makes itself; another one is refused"),
            "source": _applied("shared with the guest, but for what is a kernel's own or a socket: see Volumes"),
            "options": _applied("propagation to and from the host is noted: it ends at the guest's border"),
            "uidMappings": _MOUNT_MAPPING,
            "gidMappings": _MOUNT_MAPPING,
        }
    ],
    "hooks": {
        "prestart": _hook(_ON_HOST),
        "createRuntime": _hook(_ON_HOST),
        "createContainer": _hook(_ON_HOST),
        "startContainer": _hook("in the container, by crun"),
        "poststart": _hook(_ON_HOST),
        "poststop": _hook(_ON_HOST),
    },
    "annotations": {ANY: _applied("those of Kata's, see below; others are for whoever made them")},
    "linux": LINUX,
    "vm": {
        "hypervisor": _refused(_VM, ".path", ".parameters"),
        "kernel": _refused(_VM, ".path", ".parameters", ".initrd"),
        "image": _refused(_VM, ".path", ".format"),
        "hwconfig": _refused(
            _VM,
            ".deviceTree",
            ".vcpus",
            ".memory",
            ".dtdevs",
            ".iomems[].firstGFN",
            ".iomems[].firstMFN",
            ".iomems[].nrMFNs",
            ".irqs",
        ),
    },
    "windows": _OTHER_SYSTEM,
    "solaris": _OTHER_SYSTEM,
    "zos": _OTHER_SYSTEM,
    "freebsd": _OTHER_SYSTEM,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is applied of a value, and for the log what is not; each note is `field: why`."""

    value: Any
    notes: tuple[str, ...]


@dataclass
class _Walk:
    refused: list[str] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def keep(self, value: object, shape: Shape, where: str) -> object:
        if isinstance(shape, Rule):
            return self._leaf(value, shape, where)
        if isinstance(value, Mapping) and isinstance(shape, Mapping):
            members = (
                (name, member, shape.get(name, shape.get(ANY)), f"{where}.{name}" if where else str(name))
                for name, member in value.items()
            )
            return dict(self._members(members))
        if isinstance(value, list | tuple) and isinstance(shape, Sequence):
            return [self.keep(entry, shape[0], f"{where}[{index}]") for index, entry in enumerate(value)]
        # Of another type than the table has: whoever reads it says so.
        return value

    def _members(self, members: Iterator[tuple[str, object, Shape | None, str]]) -> Iterator[tuple[str, object]]:
        for name, member, shape, where in members:
            if shape is None:
                if _asks(member):
                    self.notes[f"{where}: no field of the OCI runtime specification 1.3"] = None
            elif not isinstance(shape, Rule) or shape.handling is Handling.APPLIED:
                # Go's encoders write null for what is empty.
                if member is not None:
                    yield name, self.keep(member, shape, where)
            else:
                self._leaf(member, shape, where)

    def _leaf(self, value: object, rule: Rule, where: str) -> object:
        if rule.handling is not Handling.APPLIED and (rule.always or _asks(value)):
            if rule.handling is Handling.REFUSED:
                self.refused.append(f"{where} can't be had in a VM: {rule.says}")
            else:
                self.notes[f"{where}: {rule.says}"] = None
        return value


def _asks(value: object) -> bool:
    """Whether a value wants anything: zero, false and what is empty are a field's own default."""
    return any(map(_asks, value.values())) if isinstance(value, Mapping) else bool(value)


def examine(value: Mapping[str, Any], shape: Mapping[str, Shape], where: str = "") -> Kept:
    """What of `value`, which `shape` describes and `where` names, is applied; a copy.

    Raises:
        RootfsError: it asks for what is refused; the message names each such field and says what to do.
    """
    walk = _Walk()
    kept = walk.keep(value, shape, where)
    if walk.refused:
        raise RootfsError("; ".join(dict.fromkeys(walk.refused)))
    return Kept(kept, tuple(walk.notes))


def rows(shape: Shape = CONFIG, where: str = "") -> Iterator[tuple[str, Rule]]:
    """Every field with its rule; entries of lists are `[]`, members of any name `*`."""
    if isinstance(shape, Rule):
        for member in shape.members or ("",):
            yield where + member, shape
    elif isinstance(shape, Mapping):
        for name, inner in shape.items():
            yield from rows(inner, f"{where}.{name}" if where else name)
    else:
        yield from rows(shape[0], f"{where}[]")
