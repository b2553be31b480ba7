"""When a process may leave the host's mount namespace: where mounts of the host still reach it."""

import pytest

from kata_runtime.mount import root_is_shared


@pytest.mark.parametrize(
    ("lines", "shared"),
    [
        (["22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw"], True),
        (["22 1 8:1 / / rw - ext4 /dev/sda1 rw"], False),
        (["22 1 8:1 / / rw master:1 - ext4 /dev/sda1 rw"], False),
        (["22 1 8:1 / / rw shared:9 master:1 - ext4 /dev/sda1 rw"], True),
        # What lies on top counts, and what is mounted elsewhere does not.
        (["22 1 8:1 / / rw - rootfs x rw", "23 22 8:1 / / rw shared:1 - ext4 /dev/sda1 rw"], True),
        (["22 1 8:1 / / rw - ext4 /dev/sda1 rw", "23 22 0:5 / /run rw shared:2 - tmpfs shared:3 rw"], False),
        ([], False),
    ],
)
def test_the_root_is_shared(lines: list[str], shared: bool) -> None:
    assert root_is_shared("\n".join(lines)) is shared
