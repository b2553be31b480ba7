"""What a detached container writes is kept, and bounded."""

import asyncio
import os
from pathlib import Path

import pytest

from kata_runtime.cli.output import _follow, kept_output


def write(descriptor: int, data: bytes) -> None:
    os.set_blocking(descriptor, True)
    while data:
        data = data[os.write(descriptor, data) :]


def test_it_is_kept_and_another_of_this_name_begins_anew(tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        with kept_output("box", keep=True, directory=tmp_path) as descriptor:
            write(descriptor, text)
        assert (tmp_path / "box.log").read_bytes() == text


def test_nothing_stays_where_nothing_shall(tmp_path: Path) -> None:
    with kept_output("box", keep=False, directory=tmp_path, limit=10) as descriptor:
        write(descriptor, bytes(100_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pieces", [1, 7, 100])
def test_two_files_of_the_limit_at_most_and_the_last_words(tmp_path: Path, pieces: int) -> None:
    limit = 200_000
    with kept_output("box", keep=True, directory=tmp_path, limit=limit) as descriptor:
        for number in range(pieces):
            write(descriptor, b"%06d" % number * 1000 * (100 // pieces))
        write(descriptor, b"the end")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) <= 2
    assert max(sizes) <= limit
    assert (tmp_path / "box.log").read_bytes().endswith(b"the end")


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    for number in range(120):
        (tmp_path / f"old{number}.log").touch()
        os.utime(tmp_path / f"old{number}.log", (number, number))
    with kept_output("box", keep=True, directory=tmp_path):
        pass
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 100
    assert {"box.log", "old119.log"} <= names
    assert "old20.log" not in names


async def test_who_follows_reads_all_of_it_across_files(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """While it is written, until its writer ends; the files change on the way."""
    pieces = [b"%06d\n" % number * 300 for number in range(30)]
    seen = b""
    async with asyncio.timeout(30):
        with kept_output("box", keep=True, directory=tmp_path, limit=30_000) as descriptor:
            following = asyncio.create_task(_follow(tmp_path / "box.log", lambda: True))
            for number, piece in enumerate(pieces, 1):
                await asyncio.to_thread(write, descriptor, piece)
                # Of what is replaced twice before it is read nothing is left.
                while len(seen) < number * len(piece):
                    seen += capfdbinary.readouterr().out
                    await asyncio.sleep(0)
        await following
    assert seen + capfdbinary.readouterr().out == b"".join(pieces)


async def test_what_has_ended_is_printed_and_not_waited_for(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "box.log").write_bytes(b"last\n")
    (tmp_path / "box.log.1").write_bytes(b"first\n")
    async with asyncio.timeout(20):
        await _follow(tmp_path / "box.log", lambda: False)
    assert capfdbinary.readouterr().out == b"first\nlast\n"
