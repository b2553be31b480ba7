import pytest

from kata_runtime.guest.clock import best


def test_the_shortest_round_trip_counts() -> None:
    # (sent, received: host; monotonic, realtime: guest)
    reading = best([(1000, 2000, 10, 990), (3000, 3100, 2040, 2990), (5000, 9000, 0, 0)])
    assert reading.offset_ns == 3050 - 2040
    assert reading.bound_ns == 50
    assert reading.wall_error_ns == 2990 - 3050


@pytest.mark.parametrize("delay", range(0, 101, 10))
def test_the_true_offset_lies_within_the_bound(delay: int) -> None:
    """Wherever between sending and receiving the guest read its clock."""
    true_offset = 5_000
    reading = best([(100, 200, 100 + delay - true_offset, 0)])
    assert abs(reading.offset_ns - true_offset) <= reading.bound_ns
