"""What is said of a VM that ended while it booted."""

import pytest

from kata_runtime.hypervisor.boot import hint_of_death


@pytest.mark.parametrize(
    ("last", "status", "hint"),
    [
        ("[1.0] Kernel panic - not syncing: System is deadlocked on memory", 0, "default_memory"),
        ("[1.0] Out of memory: Killed process 1 (python3)", 0, "default_memory"),
        ("[1.0] Kernel panic - not syncing: VFS: Unable to mount root fs", 0, "kernel_params"),
        ("kata: boot failed: /dev/vda can't be mounted as ext4", 0, "kernel_params"),
        ("[1.0] all is well", -9, "dmesg"),
        ("[1.0] all is well", 1, ""),
    ],
)
def test_what_to_do_about_it(last: str, status: int, hint: str) -> None:
    said = hint_of_death(["[0.9] before", last, "[1.1] </TASK>"], status)
    assert hint in said
    assert bool(said) is bool(hint)
