"""CPUs and memory that have been plugged into the guest, taken into use.

Files: the kernel's admin-guide, cputopology.rst and mm/memory-hotplug.rst.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from kata_agent.errors import InvalidError, PreconditionError, SetupError, TimedOutError
from kata_agent.guest.uevents import awaited
from kata_common.threads import in_thread
from kata_telemetry.span import Site

__all__ = ["MAX_PROBES", "Growth"]

_trace = Site(package="container", subsystem="sandbox")

# Seconds for CPUs that are on their way (Kata's agent waits as long).
WITHIN: Final = 5.0
MAX_PROBES: Final = 1024


class Growth:
    """What there is of both below `sys`."""

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._cpus = sys / "devices/system/cpu"
        self._memory = sys / "devices/system/memory"
        self._policy = sys / "module/memory_hotplug/parameters/online_policy"

    def prepare_memory(self) -> None:
        """Memory that comes from now on is used at once, three parts of four only for what can be moved out of the way
        when it shall go again (mm/memory_hotplug.c, auto_movable_ratio). Raises SetupError.
        """
        with suppress(OSError):  # older kernels leave all of it to the kernel's own use
            self._policy.write_text("auto-movable")
        try:
            (self._memory / "auto_online_blocks").write_text("online")
        except OSError as error:
            raise SetupError(f"this guest's kernel takes no more memory: {error}") from error

    def online_memory(self) -> int:
        """Use blocks that have come before; how many. Raises SetupError."""
        count = 0
        for state in self._memory.glob("memory[0-9]*/state"):
            try:
                if not _is_offline(state):
                    continue
                try:
                    state.write_text("online")
                except OSError:
                    # The kernel, told to use what comes, may have done so since: EINVAL (drivers/base/memory.c).
                    if _is_offline(state):
                        raise
                count += 1
            except FileNotFoundError:  # it went
                continue
            except OSError as error:
                raise SetupError(f"{state.parent.name} can't be used: {error.strerror}") from error
        return count

    async def online_cpus(self, count: int, *, wait: bool) -> int:
        """Use the CPUs that are there and not used, and those of `count` that are still to come; how many were used.

        Raises TimedOutError where not so many have come, SetupError.
        """
        done = 0
        while True:
            # Each that is used is an event as well.
            found = self._offline()
            if not found and done < count and wait:
                found = await awaited(lambda: self._offline() or None, WITHIN) or []
            if not found:
                break
            for switch in found:
                with _trace.detail("online_cpu", cpu=switch.parent.name):
                    try:
                        await in_thread("online", partial(switch.write_text, "1"))
                    except OSError as error:
                        raise SetupError(f"{switch.parent.name} can't be used: {error.strerror}") from error
                done += 1
        if wait and done < count:
            raise TimedOutError(f"of {count} CPUs that were to come {done} have within {WITHIN:g} s")
        return done

    def _offline(self) -> list[Path]:
        found = []
        for switch in self._cpus.glob("cpu[0-9]*/online"):
            with suppress(OSError):  # it goes
                if switch.read_text().strip() == "0":
                    found.append(switch)
        return sorted(found)

    def probe(self, addresses: Sequence[int]) -> None:
        """Have the kernel look for memory at these addresses. Raises InvalidError, PreconditionError, SetupError."""
        if len(addresses) > MAX_PROBES:
            raise InvalidError(f"{len(addresses)} addresses of memory; {MAX_PROBES} are taken at a time")
        file = self._memory / "probe"
        if not file.exists():
            raise PreconditionError("this guest's kernel finds memory by itself: it has no memory/probe")
        for address in addresses:
            try:
                file.write_text(f"{address:#x}")
            except OSError as error:
                raise SetupError(f"no memory can be added at {address:#x}: {error.strerror}") from error


def _is_offline(state: Path) -> bool:
    return state.read_text().strip() == "offline"
