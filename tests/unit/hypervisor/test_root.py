"""A process that has opened what it needs keeps that, and nothing else of the host's files."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kata_common import linux
from kata_runtime.cage import Cage
from kata_runtime.errors import HostError
from kata_runtime.hypervisor.root import Root
from kata_runtime.process import Child, launch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes mount namespaces")

# Says that it is there, waits, and tells what it can open.
_LOOKER = """
import os, sys
kept = open(sys.argv[1])
print("opened", file=sys.stderr, flush=True)
os.read(int(sys.argv[2]), 1)
for name in ("/etc/passwd", "etc/passwd", "../etc/passwd", "/proc/self/root", sys.argv[1], "/new"):
    try:
        os.open(name, os.O_RDONLY if name != "/new" else os.O_RDWR | os.O_CREAT)
        print("opens", name, file=sys.stderr)
    except OSError as error:
        print(error.strerror, file=sys.stderr)
print(kept.read(), os.listdir("/"), os.getcwd(), file=sys.stderr)
"""


@asynccontextmanager
async def started(root: Root, script: str, *arguments: str, fd: int) -> AsyncIterator[Child]:
    """A process in `root` that has said that it is there."""
    there = asyncio.Event()
    cage = Cage(mounts=root.path)
    argv = ["/usr/bin/env", "python3", "-I", "-S", "-c", script, *arguments]
    async with (
        asyncio.timeout(30),
        launch(argv, pass_fds=[fd], cage=cage, on_line=lambda line: there.set()) as child,
    ):
        await there.wait()
        yield child


async def test_nothing_is_left_but_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_text("content")
    monkeypatch.chdir(tmp_path)  # where its starter stands is no way back
    reading, writing = os.pipe()
    before = Path("/proc/self/mountinfo").read_text()
    async with (
        Root.made() as root,
        started(root, _LOOKER, str(tmp_path / "image"), str(reading), fd=reading) as child,
    ):
        await root.empty()
        [mount] = Path(f"/proc/{child.pid}/mountinfo").read_text().splitlines()
        assert mount.split()[4:6] == ["/", "ro,nosuid,nodev,noexec,relatime"]
        os.write(writing, b"x")
        assert await child.wait() == 0
        missing = "No such file or directory"
        assert child.output.splitlines()[1:] == [*[missing] * 5, "Read-only file system", "content [] /"]
    os.close(reading)
    os.close(writing)
    # We ourselves see what we saw.
    assert Path("/proc/self/mountinfo").read_text() == before
    assert (tmp_path / "image").exists()


async def test_what_is_mounted_later_does_not_arrive(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    async with Root.made() as root, started(root, _LOOKER, "/dev/null", str(reading), fd=reading) as child:
        linux.mount("late", tmp_path, "tmpfs")
        try:
            assert str(tmp_path) not in Path(f"/proc/{child.pid}/mountinfo").read_text()
        finally:
            linux.umount(tmp_path)
        await root.empty()
    os.close(reading)
    os.close(writing)


async def test_a_root_that_can_not_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(new: str, old: str) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(linux, "pivot_root", refused)
    async with Root.made() as root:
        with pytest.raises(HostError, match="can't be given an empty root: Invalid argument"):
            await root.empty()
