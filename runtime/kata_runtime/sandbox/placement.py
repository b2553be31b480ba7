"""Puts a sandbox's processes where the pod's limits hold for them, and takes care that nothing of it stays.

Kata's `sandbox_cgroup_only` decides who is inside. With it, all of them: the machine, what serves its devices, the shim
and what it starts. Without it only the machine is; the others are in `/kata_overhead`, where no pod's limit holds.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_common.documents import parse_json
from kata_common.files import is_directory
from kata_runtime.cage import Cage
from kata_runtime.errors import HostError
from kata_runtime.process import find_program, launch
from kata_runtime.sandbox.cgroup import CgroupPlace, HostCgroup, hierarchies, opened
from kata_telemetry.span import Site

__all__ = ["Cages", "Placement", "placed", "placement_of", "reachable_score", "remove_leftover"]

_trace = Site(package="virtcontainers", subsystem="cgroup")
_log = logging.getLogger("kata.cgroup")

# Kata's place for what is not to count as the pod's.
_OVERHEAD = "/kata_overhead"
# Seconds that systemd may take to make a scope.
_SCOPE_TIMEOUT = 10.0
_IN_SCOPE = "in the scope"
_CAP_SYS_RESOURCE = 24  # linux/capability.h


@dataclass(frozen=True)
class Placement:
    """What the specification says of it: `cgroupsPath`, and `oomScoreAdj` (None where it does not).

    With `whole` the process that asks belongs to the sandbox as well, as a shim does.
    """

    cgroups_path: str = ""
    oom_score_adj: int | None = None
    whole: bool = False


def placement_of(spec: Mapping[str, Any], *, whole: bool = False) -> Placement:
    """What a container's specification says of the place of its sandbox."""
    cgroups_path = (spec.get("linux") or {}).get("cgroupsPath") or ""
    return Placement(cgroups_path, (spec.get("process") or {}).get("oomScoreAdj"), whole)


@dataclass(frozen=True)
class Cages:
    """What the machine is kept to, and what the processes are that serve its devices."""

    machine: Cage = Cage()  # noqa: RUF009 - it is frozen
    helpers: Cage = Cage()  # noqa: RUF009


@asynccontextmanager
async def placed(
    placement: Placement, sandbox_id: str, *, only: bool, record: Path, tops: Sequence[Path] | None = None
) -> AsyncIterator[Cages]:
    """Make the sandbox's cgroups for the block; `only` is the configuration's `sandbox_cgroup_only`.

    `record` is a file that tells `remove_leftover` of them, should this process be killed.

    Raises:
        HostError: one can't be made.
    """
    tops = hierarchies() if tops is None else tops
    async with AsyncExitStack() as stack:
        try:
            with _trace.span("createCgroups", path=placement.cgroups_path, sandbox_cgroup_only=only):
                cages = await _make(stack, placement, sandbox_id, only, record, tops)
        except HostError as error:
            # As in a container, where /sys/fs/cgroup is read-only. Nobody has asked for a place, so none is missed.
            if placement.cgroups_path:
                raise
            _log.info("the sandbox has no cgroup of its own: %s", error)
            score = reachable_score(placement.oom_score_adj)
            cages = Cages(Cage((), score), Cage((), score))
        yield cages


def reachable_score(asked: int | None, process: Path = Path("/proc/self")) -> int | None:
    """What of an oom_score_adj can be had; None leaves the one that this process has.

    To lower it takes CAP_SYS_RESOURCE, which root in a container need not have; then it stays, as with containerd's
    restrict_oom_score_adj, and the log says so.
    """
    if asked is None:
        return None
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    able = int(fields["CapEff"], 16) >> _CAP_SYS_RESOURCE & 1
    own = int((process / "oom_score_adj").read_text())
    if asked < own and not able:
        _log.warning("process.oomScoreAdj stays %d on the host: %d takes CAP_SYS_RESOURCE", own, asked)
        return None
    return asked


async def _make(
    stack: AsyncExitStack, placement: Placement, sandbox_id: str, only: bool, record: Path, tops: Sequence[Path]
) -> Cages:
    place = CgroupPlace.of(placement.cgroups_path, sandbox_id)
    apart = None if only else CgroupPlace(f"{_OVERHEAD}/{sandbox_id}")
    stack.callback(record.unlink, missing_ok=True)
    _write_record(record, [where for where in (place, apart) if where is not None], tops)
    cgroup = (
        await stack.enter_async_context(_scope(place, tops))
        if place.scope
        else stack.enter_context(opened(place, tops))
    )
    overhead = cgroup if apart is None else stack.enter_context(opened(apart, tops))
    if placement.whole:
        overhead.join()
    score = reachable_score(placement.oom_score_adj)
    return Cages(Cage(cgroup.procs, score), Cage(overhead.procs, score))


@asynccontextmanager
async def _scope(place: CgroupPlace, tops: Sequence[Path]) -> AsyncIterator[HostCgroup]:
    """A scope of systemd's for the block. It lives while a process is in it: here one that does nothing else."""
    argv = [
        *(find_program("systemd-run", package="systemd"), "--quiet", "--scope", "--collect"),
        *(f"--unit={place.scope}", f"--slice={place.slice}", "--property=Delegate=yes", "--"),
        *("/bin/sh", "-c", f"echo {_IN_SCOPE} >&2; exec sleep infinity"),
    ]
    entered = asyncio.Event()

    def on_line(line: str) -> None:
        if _IN_SCOPE in line:
            entered.set()

    async with launch(argv, on_line=on_line, grace=0) as holder:
        ready = asyncio.ensure_future(entered.wait())
        ended = asyncio.ensure_future(holder.wait())
        try:
            await asyncio.wait({ready, ended}, timeout=_SCOPE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if not entered.is_set():
            raise HostError(
                f"systemd made no scope {place.scope} in {place.slice}: {holder.output.strip() or 'no answer'}",
                hint="is systemd the host's cgroup driver? see linux.cgroupsPath",
            )
        directories = [path for top in tops if is_directory(path := top / place.path.lstrip("/"))]
        yield HostCgroup(directories)


def _write_record(record: Path, places: Sequence[CgroupPlace], tops: Sequence[Path]) -> None:
    directories = [str(top / place.path.lstrip("/")) for place in places for top in tops]
    try:
        record.write_text(json.dumps(directories))
    except OSError as error:
        raise HostError(f"{record}: {error.strerror}", hint="is the disk full?") from error


def remove_leftover(record: Path) -> None:
    """Remove the cgroups that a killed runtime has recorded."""
    with suppress(OSError, ValueError):
        HostCgroup([Path(path) for path in parse_json(record.read_text())]).remove()
