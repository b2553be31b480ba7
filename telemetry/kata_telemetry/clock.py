"""Host time in both places: what a process reads locally, and how that becomes the host's time.

Spans keep *local* nanoseconds (CLOCK_MONOTONIC, which never steps) and are converted when they are handed on, because a
guest learns its offset to the host only after it has already recorded something.
"""

import bisect
import time
from typing import Protocol

__all__ = ["Clock", "GuestClock", "HostClock"]


class Clock(Protocol):
    """Turns local readings into host time; both in nanoseconds."""

    def now(self) -> int:
        """Local reading."""
        ...

    def to_host(self, local_ns: int) -> int:
        """Host time (ns since the epoch) of a local reading."""
        ...


class HostClock:
    """CLOCK_REALTIME as it was when the process started, carried on by CLOCK_MONOTONIC.

    So a wall clock that steps can't bend a span.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    now = staticmethod(time.monotonic_ns)

    def to_host(self, local_ns: int) -> int:
        return local_ns + self._offset


class GuestClock:
    """The guest's CLOCK_MONOTONIC with the offsets that the runtime measured.

    Each reading of the offset holds from the moment it was taken until the next one; the first one also holds for all
    that came before (boot).
    """

    def __init__(self) -> None:
        self._since: list[int] = []
        self._offsets: list[int] = []
        self.bound_ns = 0

    @property
    def known(self) -> bool:
        """Whether an offset was ever measured."""
        return bool(self._offsets)

    def set_offset(self, offset_ns: int, bound_ns: int) -> None:
        """Use `offset_ns` (host time minus local time, within ± `bound_ns`) from now on."""
        # In this order, because another thread may convert meanwhile: an offset without its time is never looked at.
        self._offsets.append(offset_ns)
        self._since.append(self.now())
        self.bound_ns = bound_ns

    def forget(self) -> None:
        """Drop all readings: this guest is a clone, and they were another guest's."""
        self._since.clear()
        self._offsets.clear()

    now = staticmethod(time.monotonic_ns)

    def to_host(self, local_ns: int) -> int:
        if not self._offsets:
            return local_ns
        index = bisect.bisect_right(self._since, local_ns) - 1
        return local_ns + self._offsets[max(index, 0)]
