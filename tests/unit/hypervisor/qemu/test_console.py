import asyncio
import socket
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.hypervisor.qemu.console import Console, Lines, printable


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable(b"\x1bc\x1b[?7l\x1b[2J\x1b[31mred\x07\x00 caf\xc3\xa9 \xff\r") == "red café \ufffd"


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
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nunfin"
