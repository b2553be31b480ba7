"""Pauses between attempts to reach a collector."""

import threading
import time

import pytest

from kata_traces.send.collector import UnavailableError
from kata_traces.send.pace import Pace


class Waits(threading.Condition):
    """Notes how long it would have been waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Of a clock that stands, so that `wait_for` waits once for all of it."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waits = Waits()
    monkeypatch.setattr(waits, "wait_for", lambda condition, timeout: waits.wait(timeout))
    monkeypatch.setattr("random.uniform", lambda low, high: 1.0)
    return waits


def test_pauses_grow_to_a_limit_and_begin_anew(waits: Waits) -> None:
    pace = Pace(10, waits)
    assert all(pace.pause(0) for _ in range(9))
    pace.succeeded()
    assert pace.pause(0)
    assert pace.pause(7)  # Retry-After
    assert waits.seconds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5, 7]


def test_the_end_leaves_no_time_for_long_pauses(waits: Waits) -> None:
    pace = Pace(10, waits)
    with waits:
        pace.end(3)
    assert pace.timeout() == 3
    assert [pace.pause(0) for _ in range(3)] == [True] * 3
    assert waits.seconds == [0.5, 1, 1]
    assert not pace.pause(4)
    with waits:
        pace.end(0.01)
    with pytest.raises(UnavailableError):
        pace.timeout()


def test_the_end_cuts_a_pause_short() -> None:
    changed = threading.Condition()
    pace = Pace(10, changed)
    thread = threading.Thread(target=pace.pause, args=(600,))
    thread.start()
    with changed:
        pace.end(1)
    thread.join(60)
    assert not thread.is_alive()
