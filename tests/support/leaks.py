"""What a test left behind on this machine: processes, mounts, sockets, directories.

Other sessions may run guests on the same machine, so only this is ours: processes that descend from pytest (which is
the reaper of orphans meanwhile), and what carries the name of a sandbox whose lock nobody holds any more.
"""

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kata_common.linux import become_subreaper

__all__ = ["ROOTS", "Snapshot", "adopt_orphans", "census", "look"]

# A sandbox has a directory of its name below each of these.
ROOTS = (Path("/run/kata"), Path("/var/lib/kata-containers/sandboxes"))
# Time for what ends by itself after a run, as the process that exports its last spans.
SETTLE = 10.0


@dataclass(frozen=True)
class Snapshot:
    """What there is; each part maps what identifies a thing to how it is shown."""

    processes: Mapping[int, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    sockets: Mapping[str, str] = field(default_factory=dict)
    directories: Mapping[str, str] = field(default_factory=dict)

    def left_since(self, before: "Snapshot") -> list[str]:
        """What is here and was not `before`, one line each."""
        return [
            f"{kind}: {shown}"
            for kind in ("processes", "mounts", "sockets", "directories")
            for key, shown in getattr(self, kind).items()
            if key not in getattr(before, kind)
        ]


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, so that none escapes `look`."""
    become_subreaper()


def look(before: Snapshot | None = None, roots: Iterable[Path] = ROOTS, settle: float | None = None) -> Snapshot:
    """Everything of ours now. With `before`, processes that are new since have `settle` seconds to end."""
    if before is not None:
        _await_end(set(_descendants()) - set(before.processes), SETTLE if settle is None else settle)
        _reap(set(before.processes))
    roots = tuple(roots)
    dead = {
        str(path): path for root in roots if root.is_dir() for path in root.iterdir() if not _alive(roots, path.name)
    }

    def of_ours(path: str) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in dead)

    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "/" in line]
    return Snapshot(
        processes={pid: f"{pid} {command[:200]}" for pid, command in _descendants().items()},
        mounts={point: point for point in mounts if of_ours(point)},
        sockets={path: path for path in sockets if of_ours(path)},
        directories={name: f"{name} with {_names(path)}" for name, path in dead.items() if path.is_dir()},
    )


def census(mark: str) -> dict[str, int]:
    """How many things there are whose name or command line holds `mark`, by kind.

    Mounts are those of all namespaces that a process below this one is in. Network namespaces have no such name: that
    many are they.
    """
    descendants = _descendants()
    commands = [command for command in descendants.values() if mark in command]
    sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if mark in line]
    cgroups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names if mark in name]
    directories = [path for root in ROOTS if root.is_dir() for path in root.iterdir() if mark in path.name]
    networks = {_namespace(pid, "net") for pid in descendants} - {""}
    tables = {_namespace(pid, "mnt"): pid for pid in (os.getpid(), *descendants)}
    mounts = {line for pid in tables.values() for line in _mounts(pid) if mark in line}
    helpers = ("qemu-system", "virtiofsd", "vsock.device", "shim")
    found = {helper: sum(helper in command for command in commands) for helper in helpers}
    found |= {"mounts": len(mounts), "sockets": len(sockets), "cgroups": len(cgroups)}
    return found | {"directories": len(directories), "network namespaces": len(networks)}


def _namespace(pid: int, kind: str) -> str:
    """Its name; empty where the process has ended."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/{kind}")  # noqa: PTH115 - a name of the kernel's
    return ""


def _mounts(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return []


def _names(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing in it"


def _alive(roots: Iterable[Path], name: str) -> bool:
    """Whether somebody holds the lock of the sandbox `name` (its directory below the first root)."""
    path = next(iter(roots)) / name
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _descendants() -> dict[int, str]:
    """Command lines of the living processes below this one, by pid."""
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):
                # proc(5): state and parent follow the last ')'.
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(path.name)] = int(parent)
    found: dict[int, str] = {}
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and pid != above:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[pid] = command.strip()
    return found


def _await_end(pids: set[int], settle: float) -> None:
    poll = select.poll()
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
            poll.register(descriptors[-1], select.POLLIN)
    waiting, end = set(descriptors), time.monotonic() + settle
    while waiting and (left := end - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in descriptors:
        os.close(descriptor)


def _reap(spared: set[int]) -> None:
    """Take the exit status of orphans that ended here; their makers are gone."""
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in map(int, (entry / "children").read_text().split()):
                if pid not in spared:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
