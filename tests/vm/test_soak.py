"""The short form of the soak (support.soak): what is made and deleted again leaves nothing, in one sandbox's life."""

import pytest

from support.soak import Sample, grown, soak

pytestmark = pytest.mark.slow

CYCLES = 12


async def test_containers_come_and_go(guest_image: None) -> None:
    samples, _ = await soak(CYCLES)
    assert len(samples) == CYCLES
    # In a dozen cycles on a machine that does other things, latency says nothing.
    assert grown(samples).keys() <= {"seconds"}
    assert all(sample.mounts == samples[0].mounts for sample in samples)
    assert all(sample.files == samples[0].files for sample in samples)


def test_growth_is_noticed() -> None:
    flat = Sample(1, 1.0, 30.0, 100.0, 80, 4, 3, 1, 1, 9)
    assert grown([flat] * 15) == {}
    for name, value in (("descriptors", 84), ("mounts", 4), ("memory", 35.0), ("seconds", 2.0), ("guest", 130.0)):
        more = Sample(**{**flat.__dict__, name: value})
        assert list(grown([*[flat] * 10, *[more] * 5])) == [name]
