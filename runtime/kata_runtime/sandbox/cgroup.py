"""A sandbox's place in the host's cgroups: what holds the VM and its helpers to the pod's limits.

The names are Kata's (virtcontainers/pkg/cgroups, docs/design/host-cgroups.md): below the parent that `cgroupsPath` of
the specification names, `kata_` and the path's last part. With systemd's form of it, SLICE:PREFIX:NAME, systemd makes a
scope there. We set no limits of our own in it: those of its parent, the pod, hold for all that is inside.

A host may have one hierarchy (version 2), one for each controller (version 1), or both; a process is moved in each.
"""

import contextlib
import errno
import logging
import os
import re
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kata_runtime.errors import HostError

__all__ = ["CgroupPlace", "HostCgroup", "hierarchies", "opened"]

_log = logging.getLogger("kata.cgroup")

_PREFIX = "kata_"
_SLICE = ".slice"
# What systemd takes in the name of a unit (systemd.unit(5)); the rest it would have us escape.
_UNIT = re.compile(r"[A-Za-z0-9:_.\\-]+")
# Seconds that what was killed may take to be gone.
_LAST_MOMENTS = 3.0
# cpuset of version 1 takes no process before these are set, and a new directory has them empty.
_CPUSET = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True)
class CgroupPlace:
    """Where a sandbox's cgroup is: `path` below each hierarchy's top; with systemd also the slice and the scope."""

    path: str
    slice: str = ""
    scope: str = ""

    @classmethod
    def of(cls, cgroups_path: str, sandbox_id: str) -> "CgroupPlace":
        """By the specification's `cgroupsPath`, which may be empty.

        Raises:
            HostError: it is in systemd's form, and no unit can have that name.
        """
        if cgroups_path.count(":") == 2 and not cgroups_path.startswith("/"):
            return cls._of_systemd(cgroups_path)
        # An absolute path first: no `..` leads out of the hierarchy then.
        clean = PurePosixPath(os.path.normpath(f"/{cgroups_path.lstrip('/')}"))
        name = clean.name or sandbox_id
        return cls(str(clean.parent / f"{_PREFIX}{name}"))

    @classmethod
    def _of_systemd(cls, cgroups_path: str) -> "CgroupPlace":
        parent, prefix, name = cgroups_path.split(":")
        parent = parent or f"system{_SLICE}"
        scope = f"{prefix}-{_PREFIX}{name}.scope" if prefix else f"{_PREFIX}{name}.scope"
        dashes = parent.removesuffix(_SLICE)
        bad = not parent.endswith(_SLICE) or not _UNIT.fullmatch(parent) or not _UNIT.fullmatch(scope)
        if bad or (parent != f"-{_SLICE}" and "" in dashes.split("-")):
            raise HostError(
                f"linux.cgroupsPath {cgroups_path!r} is no place for a scope of systemd's",
                hint="SLICE:PREFIX:NAME, where SLICE ends with .slice",
            )
        return cls(f"{_slice_path(parent)}/{scope}", parent, scope)


def _slice_path(name: str) -> str:
    """`a-b.slice` is in `a.slice` (systemd.slice(5))."""
    if name == f"-{_SLICE}":
        return ""
    words = name.removesuffix(_SLICE).split("-")
    return "".join(f"/{'-'.join(words[: number + 1])}{_SLICE}" for number in range(len(words)))


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Where the host's cgroup hierarchies are mounted, each once (proc(5): after " - " come type and source)."""
    found: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fields = left.split()
        if kind in ("cgroup", "cgroup2") and fields[3] == "/":
            # The super block's options tell which controllers a hierarchy has.
            found.setdefault(kind if kind == "cgroup2" else options.rpartition(" ")[2], Path(fields[4]))
    return list(found.values())


class HostCgroup:
    """The directories of one sandbox's cgroup, one in each hierarchy."""

    def __init__(self, directories: Sequence[Path], made: Sequence[Path] = ()) -> None:
        self.directories = tuple(directories)
        self._made = tuple(made)

    @property
    def procs(self) -> tuple[str, ...]:
        """The files that a process joins by."""
        return tuple(str(directory / "cgroup.procs") for directory in self.directories)

    def join(self, pid: int = 0) -> None:
        """Move a process into it, by default this one.

        Raises:
            HostError: the kernel refuses.
        """
        for path in self.procs:
            try:
                Path(path).write_text(str(pid))
            except OSError as error:
                raise HostError(f"{path}: {error.strerror}", hint="see linux.cgroupsPath") from error

    def remove(self) -> list[str]:
        """Remove it and the parents that were made for it. Who is still inside goes to the hierarchy's top.

        Returns the directories that could not be removed.
        """
        left = []
        # All of them first: who is told of in one hierarchy may be in the others as well.
        for directory in self.directories:
            _empty(directory)
        for directory in self.directories:
            try:
                if not _removed(directory):
                    _await_members(directory)
                    directory.rmdir()
            except FileNotFoundError:
                continue  # systemd removes a scope with its last process
            except OSError as error:
                left.append(f"{directory} ({error.strerror})")
        for parent in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody else has one in it meanwhile
                parent.rmdir()
        return left


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _await_members(directory: Path) -> None:
    """Wait for the end of others that are on their way out: cgroup.procs does not list them any more."""
    end = time.monotonic() + _LAST_MOMENTS
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # gone
            if not entry.name.isdecimal() or int(entry.name) == os.getpid() or not _is_member(entry, directory):
                continue
            descriptor = os.pidfd_open(int(entry.name))
            try:
                select.select([descriptor], [], [], max(end - time.monotonic(), 0))
            finally:
                os.close(descriptor)


def _is_member(process: Path, directory: Path) -> bool:
    paths = (line.split(":", 2)[2] for line in (process / "cgroup").read_text().splitlines())
    return any(path != "/" and str(directory).endswith(path) for path in paths)


def _empty(directory: Path) -> None:
    """What outlives a sandbox, as the process that sends its last spans, may not keep its cgroup alive."""
    top = directory
    while (top.parent / "cgroup.procs").exists():
        top = top.parent
    with contextlib.suppress(OSError):
        for pid in (directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (top / "cgroup.procs").write_text(pid)


@contextmanager
def opened(place: CgroupPlace, tops: Sequence[Path]) -> Iterator[HostCgroup]:
    """The cgroup at `place` in all hierarchies `tops`, made for the block.

    Raises:
        HostError: it can't be made.
    """
    cgroup = _made(place, tops)
    try:
        yield cgroup
    finally:
        if left := cgroup.remove():
            _log.warning("cgroups are left behind: %s", ", ".join(left))


def _made(place: CgroupPlace, tops: Sequence[Path]) -> HostCgroup:
    directories: list[Path] = []
    parents: list[Path] = []
    for top in tops:
        current = top
        for name in PurePosixPath(place.path).parts[1:]:
            above, current = current, current / name
            try:
                current.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                HostCgroup([*directories, current], parents).remove()
                raise HostError(f"{current}: {error.strerror}", hint="see linux.cgroupsPath") from error
            parents.append(current)
            _inherit_cpuset(above, current)
        directories.append(current)
        if parents and parents[-1] == current:
            parents.pop()
    return HostCgroup(directories, parents)


def _inherit_cpuset(parent: Path, child: Path) -> None:
    for name in _CPUSET:
        with contextlib.suppress(OSError):
            if (child / name).exists() and not (child / name).read_text().strip():
                (child / name).write_text((parent / name).read_text())
