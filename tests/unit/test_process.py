import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from kata_runtime.birth import own_start
from kata_runtime.errors import HostError, ProcessError
from kata_runtime.process import Child, Privileges, find_program, launch, run

SH = "/bin/sh"


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_run_returns_after_success() -> None:
    await run([SH, "-c", "exit 0"])


async def test_a_failure_says_what_the_program_said() -> None:
    with pytest.raises(ProcessError, match="exited with status 3: no such thing") as caught:
        await run([SH, "-c", "echo no such thing >&2; exit 3"])
    assert caught.value.status == 3


async def test_a_program_that_does_not_end_is_killed() -> None:
    with pytest.raises(ProcessError, match=r"no end within 0\.05 s"):
        await run([SH, "-c", "exec sleep 60"], timeout=0.05)


async def test_leaving_the_block_ends_the_child() -> None:
    async with launch([SH, "-c", "exec sleep 60"]) as child:
        pass
    assert child.status == -signal.SIGTERM
    assert is_gone(child.pid)


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    async with launch([SH, "-c", "trap '' TERM; echo set >&2; while :; do sleep 60; done"], grace=0.05) as child:
        while "set" not in child.output:  # noqa: ASYNC110 - the trap must be set first
            await asyncio.sleep(0)
    assert child.status == -signal.SIGKILL


async def test_cancellation_ends_the_child() -> None:
    started: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

    async def body() -> None:
        async with launch([SH, "-c", "exec sleep 60"]) as child:
            started.set_result(child)
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    child = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(child.pid)


async def test_cancelling_twice_ends_the_child_too() -> None:
    started: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

    async def body() -> None:
        async with launch([SH, "-c", "trap '' TERM; while :; do sleep 60; done"], grace=30) as child:
            started.set_result(child)
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    child = await started
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(child.pid)


async def test_stderr_goes_to_a_file_and_its_end_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with launch([SH, "-c", "for i in 1 2 3; do echo line $i >&2; done"], log_path=log) as child:
        assert await child.wait() == 0
        assert child.output == "line 1\nline 2\nline 3"
    assert log.read_text() == "line 1\nline 2\nline 3\n"


async def test_given_descriptors_are_inherited() -> None:
    read, write = os.pipe()
    try:
        async with launch([SH, "-c", f"echo here > /proc/self/fd/{write}"], pass_fds=[write]) as child:
            assert await child.wait() == 0
        assert os.read(read, 10) == b"here\n"
    finally:
        os.close(read)
        os.close(write)


async def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET", "x")
    out = tmp_path / "env"
    async with launch([SH, "-c", f"env > {out}"], environment={"GIVEN": "1"}) as child:
        await child.wait()
    text = out.read_text()
    assert "GIVEN=1" in text
    assert "SECRET" not in text


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(HostError, match="no-such-program was not found") as caught:
        find_program("no-such-program", package="some-package")
    assert "apt install some-package" in caught.value.hint


def test_own_start_is_in_the_past() -> None:
    assert 0 < time.monotonic_ns() - own_start() < 3600e9


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("by_child", "uid"), [(False, 12345), (True, 0)])
async def test_privileges_are_dropped_before_or_by_the_child(by_child: bool, uid: int) -> None:
    privileges = Privileges(12345, 12345, by_child=by_child)
    script = "grep -e Uid -e NoNewPrivs /proc/self/status >&2"
    async with launch([SH, "-c", script], privileges=privileges) as child:
        assert await child.wait() == 0
    assert child.output.split() == ["Uid:", *[str(uid)] * 4, "NoNewPrivs:", "1"]


async def test_every_line_of_stderr_is_told() -> None:
    lines: list[str] = []
    async with launch(
        ["/bin/sh", "-c", "printf 'one\\ntw' >&2; echo o >&2; printf rest >&2"], on_line=lines.append
    ) as child:
        assert await child.wait() == 0
        assert child.output.endswith("rest")
    assert lines == ["one", "two"]


async def test_a_full_disk_costs_the_log_of_a_child_and_nothing_else() -> None:
    async with launch([SH, "-c", "echo one >&2; echo two >&2"], log_path=Path("/dev/full")) as child:
        assert await child.wait() == 0
        assert child.output == "one\ntwo"
