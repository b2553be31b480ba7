import asyncio
import os
import stat
from pathlib import Path

import pytest

from kata_runtime.shim.stdio import Names, open_stdio
from kata_runtime.shim.ttrpc.errors import InvalidArgument


async def test_fifos_outlive_their_clients(tmp_path: Path) -> None:
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    host = await open_stdio(Names(str(tmp_path / "in"), f"fifo://{tmp_path}/out"), "c", "ns")
    stdin, stdout = host.stdio.stdin, host.stdio.stdout
    assert stdin is not None
    assert stdout is not None
    for text in (b"first", b"second"):  # a client that goes, and another one
        client = os.open(tmp_path / "in", os.O_WRONLY)
        os.write(client, text)
        os.close(client)
        assert os.read(stdin, 100) == text
        with pytest.raises(BlockingIOError):
            os.read(stdin, 1)
    os.write(stdout, b"nobody listens yet")
    reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"nobody listens yet"
    host.end_input()
    host.end_input()
    assert os.read(stdin, 1) == b""
    await host.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_a_file_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "out"
    for text in (b"one", b"two"):
        host = await open_stdio(Names(stdout=f"file://{path}", stderr=f"file://{path}"), "c", "ns")
        assert host.stdio.stdout is not None
        assert host.stdio.stderr is not None
        os.write(host.stdio.stdout, text)
        os.write(host.stdio.stderr, b"!")
        await host.close()
    assert path.read_bytes() == b"one!two!"
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0


async def test_a_terminal_has_no_stderr(tmp_path: Path) -> None:
    host = await open_stdio(
        Names(stdout=f"file://{tmp_path}/a", stderr=f"file://{tmp_path}/b", terminal=True), "c", "n"
    )
    assert host.stdio.stderr is None
    await host.close()


@pytest.mark.parametrize("name", ["/nowhere/at/all", "http://host/", "binary:///nowhere/at/all", "/"])
async def test_what_can_not_be_opened_is_refused(name: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InvalidArgument):
        await open_stdio(Names(stdout=name), "c", "ns")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
async def test_a_logging_program(tmp_path: Path) -> None:
    program = tmp_path / "logger"
    program.write_text(
        '#!/bin/sh\nexec 5>&-\necho "$CONTAINER_ID $CONTAINER_NAMESPACE $*" >"$2"\ncat <&3 >>"$2"\ncat <&4 >>"$2"\n'
    )
    program.chmod(0o755)
    log = tmp_path / "log"
    async with asyncio.timeout(20):
        name = f"binary://{program}?file={log}"
        host = await open_stdio(Names(stdout=name, stderr=name), "box", "ns")
        assert host.stdio.stdout is not None
        assert host.stdio.stderr is not None
        os.write(host.stdio.stdout, b"out\n")
        os.write(host.stdio.stderr, b"err\n")
        await host.close()
    assert log.read_text() == f"box ns file {log}\nout\nerr\n"
