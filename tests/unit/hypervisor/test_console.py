import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.helper_log import Lines, readable
from kata_runtime.hypervisor.boot import last_words
from kata_runtime.hypervisor.console import Console


def test_control_characters_do_not_reach_a_terminal() -> None:
    shown = readable(b"\x1bc\x1b[?7l\x1b[2J\x1b[31mred\x07\x00 caf\xc3\xa9 \xff\r")
    assert shown == r"red\x07\x00 café " + "\ufffd"


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20))
def test_lines_do_not_depend_on_how_the_stream_was_cut(chunks: list[bytes], limit: int) -> None:
    whole, cut = Lines(limit), Lines(limit)
    expected = whole.feed(b"".join(chunks))
    got = [line for chunk in chunks for line in cut.feed(chunk)]
    assert b"".join(got) == b"".join(expected)
    assert all(len(line) <= limit for line in got)
    assert len(cut.partial) <= limit


def test_an_endless_line_comes_in_pieces() -> None:
    lines = Lines(4)
    assert lines.feed(b"abcdefghij") == [b"abcd", b"efgh"]
    assert lines.partial == b"ij"
    assert lines.feed(b"\r\nx\n") == [b"ij", b"x"]


async def test_console_hands_on_lines_and_keeps_the_last_ones(tmp_path: Path) -> None:
    ours, guest = socket.socketpair()
    ours.setblocking(False)
    lines: asyncio.Queue[str] = asyncio.Queue()
    console = await Console.attach(ours, lambda text, _: lines.put_nowait(text), tmp_path / "log")
    try:
        guest.sendall(b"one\ntwo\nunfin")
        assert [await lines.get(), await lines.get()] == ["one", "two"]
        assert console.tail(2) == ["two", "unfin"]
    finally:
        guest.close()
        console.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nunfin\n"


async def test_a_full_disk_costs_the_log_and_no_line() -> None:
    ours, guest = socket.socketpair()
    ours.setblocking(False)
    lines: asyncio.Queue[str] = asyncio.Queue()
    console = await Console.attach(ours, lambda text, _: lines.put_nowait(text), Path("/dev/full"))
    try:
        guest.sendall(b"one\n")
        assert await lines.get() == "one"
        guest.sendall(b"two\n")
        assert await lines.get() == "two"
    finally:
        guest.close()
        console.close()


@pytest.mark.parametrize(
    ("console", "cause", "quoted"),
    [
        (
            ["[    1.0] Run /init", "[    1.1][  T1] Kernel panic - not syncing: no root", "[    1.1] </TASK>"],
            "Kernel panic - not syncing: no root",
            2,
        ),
        (
            ["Traceback (most recent call last):", "  File x", "ModuleNotFoundError: No module named 'grpc'", "bye"],
            "ModuleNotFoundError: No module named 'grpc'",
            3,
        ),
        (
            [
                "mount: mounting /dev/vda on /root failed",
                "kata: boot failed: /dev/vda can't be mounted",
                "[ 1.9] reboot",
            ],
            "kata: boot failed: /dev/vda can't be mounted",
            2,
        ),
        (["[    1.0] all is well"] * 40, "", 15),
        ([], "", 0),
    ],
)
def test_the_line_that_says_why(console: list[str], cause: str, quoted: int) -> None:
    found, lines = last_words(console)
    assert (found, len(lines)) == (cause, quoted)
