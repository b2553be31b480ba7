"""What of a specification is about this guest's own CPUs and memory, said in its terms.

A host's numbers of CPUs are not the guest's, and the sizes of its huge pages need not be.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from kata_agent.errors import InvalidError

__all__ = ["Guest", "fit_resources", "map_cpus", "parse_cpus"]

# More than any kernel has (CONFIG_NR_CPUS).
MAX_CPU: Final = 1 << 16


class Guest(NamedTuple):
    """What this guest has: CPUs that are online, and sizes of huge pages as OCI writes them ("2MB")."""

    cpus: frozenset[int]
    hugepages: frozenset[str]

    @classmethod
    def look(cls) -> "Guest":
        """By what the kernel says."""
        cpus = frozenset(range(os.cpu_count() or 1))
        with suppress(OSError, InvalidError):
            cpus = parse_cpus(Path("/sys/devices/system/cpu/online").read_text(), "the guest's CPUs")
        pages: list[Path] = []
        with suppress(OSError):
            pages = list(Path("/sys/kernel/mm/hugepages").iterdir())
        return cls(cpus, frozenset(_page_size(path.name) for path in pages))


def _page_size(name: str) -> str:
    """hugepages-2048kB -> 2MB, as the controller's files are called (admin-guide/cgroup-v2.rst)."""
    size = int(name.removeprefix("hugepages-").removesuffix("kB"))
    for unit in ("KB", "MB"):
        if size < 1024:
            return f"{size}{unit}"
        size //= 1024
    return f"{size}GB"


def parse_cpus(text: str, what: str) -> frozenset[int]:
    """The CPUs in a list such as 0-3,6 (cpuset(7)). Raises InvalidError."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        try:
            begin = int(first)
            end = int(last) if dash else begin
        except ValueError:
            raise InvalidError(f"{what}: {text[:60]!r} is no list of CPUs") from None
        if not 0 <= begin <= end < MAX_CPU:
            raise InvalidError(f"{what}: {text[:60]!r} is no list of CPUs")
        found.update(range(begin, end + 1))
    return frozenset(found)


def map_cpus(text: str, what: str, online: frozenset[int]) -> frozenset[int]:
    """The guest's CPUs for those that a host's list names: the same where it has them all, else as many, at least one.

    Raises InvalidError.
    """
    named = parse_cpus(text, what)
    return named if named <= online else frozenset(sorted(online)[: len(named)])


def fit_resources(resources: dict[str, Any], guest: Guest) -> None:
    """Change OCI's LinuxResources for this guest, in place. Raises InvalidError."""
    for group, name in (("cpu", "cpus"), ("unified", "cpuset.cpus")):
        values = resources.get(group)
        if isinstance(values, dict) and isinstance(values.get(name), str) and values[name]:
            cpus = map_cpus(values[name], f"resources.{group}.{name}", guest.cpus)
            values[name] = ",".join(map(str, sorted(cpus)))
    pages = resources.get("hugepageLimits")
    if isinstance(pages, list):
        resources["hugepageLimits"] = [entry for entry in pages if _holds(entry, guest)]


def _holds(entry: Mapping[str, Any], guest: Guest) -> bool:
    """Whether the limit is one that the guest's kernel knows. Raises InvalidError where it asks for pages it lacks."""
    size = entry.get("pageSize") if isinstance(entry, dict) else None
    if isinstance(size, str) and size in guest.hugepages:
        return True
    if isinstance(size, str) and not entry.get("limit"):
        return False  # none of a size that isn't there
    known = ", ".join(sorted(guest.hugepages)) or "none"
    raise InvalidError(f"resources.hugepageLimits: the guest has no pages of {str(size)[:20]!r}; it has {known}")
