"""Block devices that a specification wants in a container."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DiskNode", "disk_nodes", "mounts_as_devices", "others"]

_ALL: Final = -1
# runc's for a device node that says nothing else.
_MODE: Final = 0o666


@dataclass(frozen=True, slots=True)
class DiskNode:
    """A node at `path` in the container for the host's block device of these numbers.

    `access` is what the container may do with it, letters of "rwm" (OCI, config-linux.md, Device cgroup).
    """

    path: str
    major: int
    minor: int
    access: str
    mode: int = _MODE
    uid: int = 0
    gid: int = 0

    @property
    def readonly(self) -> bool:
        """Whether it is not to be written."""
        return "w" not in self.access


def disk_nodes(
    devices: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, Any]]
) -> tuple[list[DiskNode], list[str]]:
    """Those of linux.devices that the rules let it use, and notes about the others."""
    nodes, notes = [], []
    for index, device in enumerate(devices):
        if device.get("type") != "b":
            continue
        major, minor = int(device.get("major") or 0), int(device.get("minor") or 0)
        access = _access(major, minor, rules)
        if not access:
            notes.append(f"linux.devices[{index}]: no rule of linux.resources.devices lets it use {device.get('path')}")
            continue
        mode = device.get("fileMode")
        nodes.append(
            DiskNode(
                path=str(device["path"]),
                major=major,
                minor=minor,
                access=access,
                mode=_MODE if mode is None else int(mode) & 0o7777,
                uid=int(device.get("uid") or 0),
                gid=int(device.get("gid") or 0),
            )
        )
    return nodes, notes


def _access(major: int, minor: int, rules: Sequence[Mapping[str, Any]]) -> str:
    """What the rules come to, one after the other."""
    allowed: set[str] = set()
    for rule in rules:
        numbers = ((rule.get("major"), major), (rule.get("minor"), minor))
        if rule.get("type", "a") not in ("a", "b", "") or any(has not in (None, _ALL, is_) for has, is_ in numbers):
            continue
        letters = set(rule.get("access") or "rwm")
        allowed = allowed | letters if rule.get("allow") else allowed - letters
    return "".join(letter for letter in "rwm" if letter in allowed)


def others(rules: Sequence[Mapping[str, Any]], nodes: Sequence[DiskNode]) -> list[Mapping[str, Any]]:
    """The rules but for those that are about these devices alone: in the guest they have other numbers."""
    numbers = {(node.major, node.minor) for node in nodes}
    return [rule for rule in rules if rule.get("type") != "b" or (rule.get("major"), rule.get("minor")) not in numbers]


def mounts_as_devices(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification whose binds of block devices are devices: what a guest has of them is a node of its own."""
    mounts, devices, rules = [], [], []
    for mount in spec.get("mounts") or ():
        status = _block(mount)
        if status is None:
            mounts.append(mount)
            continue
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        access = "rm" if {"ro", "rro"} & set(mount.get("options") or ()) else "rwm"
        device = {"path": mount["destination"], "type": "b", "major": major, "minor": minor}
        mode = stat.S_IMODE(status.st_mode)
        devices.append({**device, "fileMode": mode, "uid": status.st_uid, "gid": status.st_gid})
        rules.append({"allow": True, "type": "b", "major": major, "minor": minor, "access": access})
    if not devices:
        return dict(spec)
    linux = dict(spec.get("linux") or {})
    resources = dict(linux.get("resources") or {})
    resources["devices"] = [*(resources.get("devices") or ()), *rules]
    linux.update(devices=[*(linux.get("devices") or ()), *devices], resources=resources)
    return {**spec, "mounts": mounts, "linux": linux}


def _block(mount: Mapping[str, Any]) -> os.stat_result | None:
    source = str(mount.get("source") or "")
    binds = mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options") or ())
    if not binds or not source.startswith("/"):
        return None
    try:
        status = os.stat(source)  # noqa: PTH116 - whoever mounts it says what is wrong with it
    except (OSError, ValueError):
        return None
    return status if stat.S_ISBLK(status.st_mode) else None
