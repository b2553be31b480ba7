"""Where and how soon a process runs: CPUs, scheduling policy, I/O priority.

crun 1.8 knows none of it. The kernel keeps all three by thread and hands them on to children and through execve(2), so
they are set on the thread that starts crun (exec), or on a container's init while it waits for its start. Numbers:
linux/sched.h, linux/sched/types.h, linux/ioprio.h; sched_setattr(2), ioprio_set(2).
"""

import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from kata_agent.container.limits import map_cpus
from kata_agent.errors import InvalidError, SetupError
from kata_common import linux

__all__ = ["NOWHERE", "Placement", "take_placement"]

POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}


class Placement(NamedTuple):
    """What is asked for; None, or no CPUs, leaves things as they are."""

    attributes: bytes | None = None  # struct sched_attr
    io_priority: int | None = None
    first_cpus: frozenset[int] = frozenset()
    cpus: frozenset[int] = frozenset()

    @property
    def inherited(self) -> bool:
        """Whether a child has it all from its parent: not so with a deadline or a flag that says no."""
        if self.attributes is None:
            return True
        _, policy, flags = struct.unpack_from("=IIQ", self.attributes)
        return policy != POLICIES["SCHED_DEADLINE"] and not flags & FLAGS["SCHED_FLAG_RESET_ON_FORK"]

    def begin(self) -> None:
        """For the calling thread and what it starts. Raises SetupError."""
        if self.first_cpus or self.cpus:
            self._pin(0, self.first_cpus or self.cpus)
        if self.inherited:
            self.prioritize(0)

    def settle(self, pid: int) -> None:
        """For a process, once it is in its cgroup (which sets its CPUs anew). Raises SetupError."""
        if self.cpus:
            self._pin(pid, self.cpus)
        if not self.inherited:
            self.prioritize(pid)

    def on(self, container: "Placement") -> "Placement":
        """This, with the container's CPUs where it names none."""
        if self.first_cpus or self.cpus:
            return self
        return self._replace(first_cpus=container.first_cpus, cpus=container.cpus)

    def _pin(self, pid: int, cpus: frozenset[int]) -> None:
        _call("process.execCPUAffinity", partial(os.sched_setaffinity, pid, cpus))

    def prioritize(self, pid: int) -> None:
        """Policy and priorities, for a process that may not run yet; 0: for the calling thread. Raises SetupError."""
        if self.attributes is not None:
            _call("process.scheduler", partial(linux.set_scheduling, pid, self.attributes))
        if self.io_priority is not None:
            _call("process.ioPriority", partial(linux.set_io_priority, pid, self.io_priority))


NOWHERE: Final = Placement()


def _call(field: str, work: Callable[[], None]) -> None:
    try:
        work()
    except ProcessLookupError:
        pass  # it has ended
    except OSError as error:
        raise SetupError(f"{field} can't be set: {error.strerror}") from error


def take_placement(process: dict[str, Any], online: frozenset[int]) -> Placement:
    """What an OCI process asks for, taken out of it, for a guest with these CPUs. Raises InvalidError."""
    scheduler, priority, affinity = (
        _object(process.pop(name, None), name) for name in ("scheduler", "ioPriority", "execCPUAffinity")
    )
    cpus = {
        name: map_cpus(str(affinity[name]), f"process.execCPUAffinity.{name}", online)
        for name in ("initial", "final")
        if affinity.get(name)
    }
    return Placement(
        _attributes(scheduler) if scheduler else None,
        _io_priority(priority) if priority else None,
        cpus.get("initial", frozenset()),
        cpus.get("final", frozenset()),
    )


def _object(value: object, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidError(f"process.{name} is not an object")
    return value or {}


def _attributes(scheduler: dict[str, Any]) -> bytes:
    policy, flags = scheduler.get("policy"), scheduler.get("flags") or []
    if not isinstance(policy, str) or policy not in POLICIES:
        raise InvalidError(f"process.scheduler.policy: {str(policy)[:40]!r} is none of {', '.join(POLICIES)}")
    if not isinstance(flags, list):
        raise InvalidError("process.scheduler.flags is no list")
    if unknown := [flag for flag in flags if not isinstance(flag, str) or flag not in FLAGS]:
        raise InvalidError(f"process.scheduler.flags: {str(unknown[0])[:40]!r} is none of {', '.join(FLAGS)}")
    numbers = [scheduler.get(name) or 0 for name in ("nice", "priority", "runtime", "deadline", "period")]
    if not all(isinstance(number, int) for number in numbers):
        raise InvalidError("process.scheduler: nice, priority, runtime, deadline and period are integers")
    nice, *rest = numbers
    try:
        packed = struct.pack("=IQiIQQQ", POLICIES[policy], sum({FLAGS[flag] for flag in flags}), nice, *rest)
    except struct.error as error:
        raise InvalidError(f"process.scheduler: a number is out of range: {error}") from error
    return struct.pack("=I", 4 + len(packed)) + packed


def _io_priority(priority: dict[str, Any]) -> int:
    kind, level = priority.get("class"), priority.get("priority") or 0
    if not isinstance(kind, str) or kind not in IO_CLASSES:
        raise InvalidError(f"process.ioPriority.class: {str(kind)[:40]!r} is none of {', '.join(IO_CLASSES)}")
    if not isinstance(level, int) or not 0 <= level <= 7:
        raise InvalidError("process.ioPriority.priority is not a number from 0 to 7")
    return IO_CLASSES[kind] << 13 | level
