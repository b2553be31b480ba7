"""When a collector that took nothing is asked again, and how long one request to it may take."""

import random
import threading
import time
from typing import Final

from kata_traces.send.collector import UnavailableError

__all__ = ["Pace"]

# Seconds between attempts: doubled from the first to the last, and spread so that many don't come at once.
_FIRST: Final = 0.5
_LAST: Final = 30.0
# While there is an end there is no time for long pauses.
_LAST_ENDING: Final = 1.0
# The shortest time worth starting a request.
_SHORTEST: Final = 0.05


class Pace:
    """`timeout` is that of a request (s); `changed` is held by whoever calls `end`, which cuts a pause short."""

    def __init__(self, timeout: float, changed: threading.Condition) -> None:
        self._limit = timeout
        self._changed = changed
        self._failed = 0
        self._deadline: float | None = None

    @property
    def deadline(self) -> float | None:
        """When the time for everything is over (monotonic, s), where `end` has said so."""
        return self._deadline

    def end(self, grace: float) -> None:
        """From now on there are `grace` seconds for everything."""
        self._deadline = time.monotonic() + grace
        self._changed.notify_all()

    def timeout(self) -> float:
        """Seconds for the next request. Raises UnavailableError where there is no time for one."""
        limit = self._limit
        if self._deadline is not None:
            limit = min(limit, self._deadline - time.monotonic())
        if limit < _SHORTEST:
            raise UnavailableError("no time left")
        return limit

    def succeeded(self) -> None:
        """The next pause is a short one again."""
        self._failed = 0

    def pause(self, at_least: float) -> bool:
        """Wait after a failed attempt, `at_least` so many seconds; False where there won't be another one."""
        longest = _LAST if self._deadline is None else _LAST_ENDING
        seconds = max(min(_FIRST * 2**self._failed, longest), at_least) * random.uniform(0.8, 1.2)  # noqa: S311
        self._failed = min(self._failed + 1, 10)
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
                return True
            if time.monotonic() + seconds > self._deadline:
                return False
            self._changed.wait_for(lambda: False, seconds)
            return True
