"""How long calls take, counted in memory: what Kata's shim counts, with its bounds."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prometheus_client.metrics_core import HistogramMetricFamily

__all__ = ["AGENT_CALLS", "CALLS", "Durations"]

# Milliseconds (Kata's src/runtime/pkg/containerd-shim-v2/shim_metrics.go: ten bounds, each twice the one before).
BOUNDS: Final = tuple(float(1 << exponent) for exponent in range(10))
# Kinds of calls; their names are those of methods, of which there are fewer.
_MAX_ACTIONS: Final = 100


class Durations:
    """A histogram for each action."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    @contextmanager
    def timed(self, action: str) -> Iterator[None]:
        """Count what the block takes, however it ends."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            self.observe(action, (time.monotonic_ns() - begin) / 1e6)

    def observe(self, action: str, milliseconds: float) -> None:
        """Count a call."""
        counts = self._counts.get(action)
        if counts is None:
            if len(self._counts) >= _MAX_ACTIONS:
                return
            counts = self._counts[action] = [0] * (len(BOUNDS) + 1)
            self._sums[action] = 0.0
        counts[bisect_left(BOUNDS, milliseconds)] += 1
        self._sums[action] += milliseconds

    def family(self, name: str, says: str, labels: tuple[str, ...] = ("action",)) -> "HistogramMetricFamily":
        """All of it for Prometheus' library; without `labels` there is one action, of no name."""
        from prometheus_client.metrics_core import HistogramMetricFamily

        found = HistogramMetricFamily(name, says, labels=labels)
        for action, counts in sorted(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            found.add_metric([action][: len(labels)], buckets=buckets, sum_value=self._sums[action])
        return found


# Of this process: what containerd asked of it, and what it asked of agents.
CALLS: Final = Durations()
AGENT_CALLS: Final = Durations()
