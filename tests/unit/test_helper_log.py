"""Logs of helpers and consoles, which a guest can make talk: bounded in size and rate, and what is missing is said."""

import asyncio
import re
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.helper_log import BURST, LAST, RATE, SIZE, HelperLog, Lines
from kata_runtime.process import launch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def put(log: HelperLog, text: str) -> None:
    """As whoever reads from a helper does it."""
    lines = text.splitlines()
    (log.lines if log.allows(len(text)) else log.last)(lines)


def test_what_is_within_bounds_is_there(tmp_path: Path) -> None:
    log = HelperLog(tmp_path / "log", clock=Clock())
    put(log, "one\ntwo\n")
    put(log, "three\n")
    log.close("unfinished")
    log.close("again")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nunfinished\n"


def test_a_flood_is_left_out_and_said(tmp_path: Path) -> None:
    clock = Clock()
    log = HelperLog(tmp_path / "log", clock=clock)
    put(log, "first\n")
    block = "".join(f"{number:09}\n" for number in range(1000))
    for _ in range(100):
        put(log, block)
    clock.now = 60.0
    put(log, "calm again\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "first"
    assert lines[-1] == "calm again"
    [said] = [line for line in lines if line.startswith("[")]
    written = sum(len(line) + 1 for line in lines if line != said)
    missing = len("first\n") + 100 * len(block) + len("calm again\n") - written
    assert said == f"[{missing} bytes are left out]"
    assert written < BURST + 2 * len(block)


def test_the_last_words_are_kept(tmp_path: Path) -> None:
    log = HelperLog(tmp_path / "log", clock=Clock())
    for number in range(2000):
        put(log, f"{number} {'x' * 1000}\n")
    put(log, "why it ended\n")
    log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1] == "why it ended"
    assert lines[-2].startswith("1999 ")
    assert sum(re.fullmatch(r"\[\d+ bytes are left out\]", line) is not None for line in lines) == 1
    assert (tmp_path / "log").stat().st_size < BURST + LAST + 2000


def test_its_size_is_bounded_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    log = HelperLog(tmp_path / "log", clock=clock)
    for second in range(1000):
        clock.now = float(second)
        put(log, f"{second:05} {'x' * (RATE - 10)}\n")
    log.close()
    assert (tmp_path / "log").stat().st_size < SIZE + LAST + RATE + 200


def test_a_full_disk_costs_the_log() -> None:
    log = HelperLog(Path("/dev/full"))
    put(log, "one\ntwo\n")
    put(log, "three\n")
    log.close("four")


@given(st.lists(st.text(max_size=2000), max_size=60), st.integers(0, 5000))
def test_no_text_breaks_it(texts: list[str], size: int) -> None:
    log = HelperLog(None, size=size, clock=Clock())
    for text in texts:
        put(log, text)
    log.close()


@given(st.binary(max_size=3000), st.integers(1, 500))
def test_skipping_keeps_whole_lines_of_the_end(chunk: bytes, keep: int) -> None:
    lines = Lines()
    found = lines.skip(chunk, keep)
    end = chunk[-keep:]
    assert sum(map(len, found)) + len(lines.partial) <= len(end)
    assert end.endswith(lines.partial)


@pytest.mark.slow
async def test_a_helper_that_floods(tmp_path: Path) -> None:
    """As QEMU at a guest's wish: 100,000 lines. Its log and our time are bounded, its last words are there."""
    program = "import sys\nfor n in range(100_000): sys.stderr.write(f'Invalid access at {n:#x} \\x1b[31m\\n')\n"
    began = time.process_time()
    async with launch(
        [sys.executable, "-IS", "-c", program + "sys.exit('the end')"], log_path=tmp_path / "log"
    ) as child:
        async with asyncio.timeout(60):
            assert await child.wait() == 1
        assert child.output.endswith("the end")
        assert len(child.output) < 40 * 1100
    took = time.process_time() - began
    text = (tmp_path / "log").read_text()
    assert text.startswith("Invalid access at 0x0\n")
    assert text.endswith("the end\n")
    assert re.search(r"^\[\d+ bytes are left out\]$", text, re.MULTILINE)
    assert len(text) < 2 * BURST
    assert took < 2
