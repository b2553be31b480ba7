"""OCI's LinuxResources as a guest's cgroup v2 can hold them. Pure: dictionaries in, dictionaries out."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kata_runtime.errors import RootfsError
from kata_runtime.oci.fields import RESOURCES, Kept, examine

__all__ = ["NO_DEVICES", "SAME_EVERYWHERE", "guest_resources", "translate"]

# mem, zero and their kin, the terminal devices, tun and fuse: the numbers mean the same in every kernel (Linux's
# devices.txt).
SAME_EVERYWHERE = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200), (10, 229)})
_SAME_MAJORS = frozenset(range(136, 144))  # pseudo terminals
# Every device but the pseudo devices that crun allows by itself (null, zero, full, tty, random, urandom, pts...): with
# CAP_MKNOD a container could otherwise reach the disk that the guest's agent runs from.
NO_DEVICES = ({"allow": False, "access": "rwm"},)
# What runc writes to and what a guest has: a controller's files.
_UNIFIED = re.compile(r"(cpu|cpuset|hugetlb|io|memory|misc|pids)\.[A-Za-z0-9_.]+")
_DEVICE_NUMBER = re.compile(r"\d+:\d+")
_CPUS = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")


def guest_resources(resources: Mapping[str, Any]) -> Kept:
    """LinuxResources that change a running container's limits, for its guest.

    Devices are not among them: what a container may use of the guest's is settled when it is made.

    Raises:
        RootfsError: they ask for a limit that a guest can't hold; the message names the field.
    """
    kept = examine(resources, RESOURCES, "resources")
    changed, notes = translate(kept.value, "resources")
    changed.pop("devices")
    return Kept(changed, kept.notes + notes)


def translate(resources: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Examined resources, named `where` in messages, in crun's terms; and what of them is noted.

    Raises:
        RootfsError: as `guest_resources`.
    """
    result = {group: values for group, values in resources.items() if values}
    rules, notes = _device_rules(resources.get("devices") or (), f"{where}.devices")
    result["devices"] = rules
    unified = _unified(resources.get("unified") or {}, f"{where}.unified")
    cpu = dict(resources.get("cpu") or {})
    check_cpus(cpu.get("cpus"), f"{where}.cpu.cpus")
    check_cpus(unified.get("cpuset.cpus"), f"{where}.unified.cpuset.cpus")
    if burst := cpu.pop("burst", None):  # crun 1.8 reads it and does nothing
        unified.setdefault("cpu.max.burst", str(burst))
    result["cpu"] = cpu
    result["unified"] = unified
    return {group: values for group, values in result.items() if values or group == "devices"}, notes


def check_cpus(text: str | None, where: str) -> None:
    """Refuse what is no list of CPUs (cpuset(7))."""
    if text and not _CPUS.fullmatch(text.strip()):
        raise RootfsError(f"{where}: {text[:60]!r} is no list of CPUs", hint="write it as 0-3,6")


def _unified(unified: Mapping[str, Any], where: str) -> dict[str, str]:
    for name, value in unified.items():
        if not isinstance(value, str):
            raise RootfsError(f"{where}.{name}: expected a string")
        if not _UNIFIED.fullmatch(name):
            raise RootfsError(
                f"{where}.{name[:60]} can't be had in a VM: it is no file of a controller that the guest has",
                hint="these are cpu, cpuset, hugetlb, io, memory, misc and pids",
            )
        if name.startswith("io.") and _DEVICE_NUMBER.search(value):
            raise RootfsError(
                f"{where}.{name} can't be had in a VM: {value[:60]!r} names a device of the host", hint="leave it out"
            )
    return dict(unified)


def _device_rules(rules: Sequence[Mapping[str, Any]], where: str) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Rules that mean the same in the guest, after the one that denies all."""
    result = [dict(rule) for rule in NO_DEVICES]
    notes = []
    for index, rule in enumerate(rules):
        numbers = tuple(-1 if rule.get(name) is None else rule[name] for name in ("major", "minor"))
        everything = numbers == (-1, -1)
        known = numbers in SAME_EVERYWHERE or numbers[0] in _SAME_MAJORS
        if everything or known or not rule.get("allow"):
            result += [dict(rule)] if dict(rule) not in result[-1:] else []
        else:
            name = f"{rule.get('type') or 'a'} {numbers[0]}:{numbers[1]}".replace("-1", "*")
            notes.append(f"{where}[{index}]: {name} is another device in the guest; it stays denied")
    return result, tuple(notes)
