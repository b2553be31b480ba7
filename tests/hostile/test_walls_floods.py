"""Whatever talks at a guest's wish talks within bounds, and the host has time for others meanwhile."""

from pathlib import Path

import pytest

from kata_runtime.helper_log import BURST, LAST, SIZE
from support.hostile import Attacker

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOGS = Path(__file__).parents[2] / "artifacts/hostile-guest"
# The kernel tells of all tasks, by the names that they have given themselves.
_TASKS = """
    libc.prctl(15, name.encode(), 0, 0, 0)
    write("/proc/sysrq-trigger", "9")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write("/proc/sysrq-trigger", "t")
    result = "told"
"""


async def test_the_console(root: Attacker) -> None:
    log = LOGS / "console.log"
    assert await root.does(_TASKS, name="\x1b]0;owned\x07", seconds=20) == "told"
    size = log.stat().st_size
    assert BURST < size <= SIZE + LAST
    text = log.read_text()
    assert r"0;owned\x07" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert await root.does("result = 'here'") == "here"
