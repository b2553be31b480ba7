"""A helper that fails while its machine starts is told as that helper, with its words, and at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.cage import Cage
from kata_runtime.errors import HypervisorError
from kata_runtime.hypervisor.helper import HelperStart
from kata_runtime.process import launch
from kata_runtime.sandbox.vm import Served, _Helpers
from kata_telemetry.span import NO_SPAN

SERVES = "it serves"


@asynccontextmanager
async def served(*scripts: str) -> AsyncIterator[Served]:
    """With helpers that are these shell scripts, called h0, h1 …"""
    async with AsyncExitStack() as stack:
        helpers = _Helpers(stack, ExitStack(), Path("/nowhere"), Cage())
        for number, script in enumerate(scripts):
            start = HelperStart(NO_SPAN, SERVES)
            launched = launch(["/bin/sh", "-c", script], on_line=start.on_line, grace=0, name=f"h{number}")
            helpers.children.append(await stack.enter_async_context(launched))
            helpers.starts.append(start)
        nothing: Any = None
        yield Served(stack, ExitStack(), nothing, nothing, nothing, helpers, "", nothing)


WAITS = f"echo {SERVES} >&2; exec sleep 1000"


async def never() -> None:
    await asyncio.Event().wait()


async def failing(error: Exception) -> None:
    await asyncio.sleep(0.2)
    raise error


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no such option' >&2; exit 3", "h1 did not start (exit status 3); h1 said: no such option"),
        ("kill -9 $$", "h1 did not start (killed by signal 9)"),
        ("exit 0", "h1 did not start (exit status 0)"),
        (f"echo {SERVES} >&2; exit 4", f"h1 ended (exit status 4); h1 said: {SERVES}"),
    ],
)
async def test_one_that_ends_is_told_before_the_machine_has_given_up(script: str, said: str) -> None:
    async with served(WAITS, script) as there, asyncio.timeout(20):
        with pytest.raises(HypervisorError) as told:
            await there.unless_helpers_end(never())
    assert str(told.value) == said


async def test_one_that_hangs_is_told_when_the_monitor_is_silent() -> None:
    silence = HypervisorError("QEMU's monitor did not answer")
    silence.__cause__ = TimeoutError()
    async with served(WAITS, "exec sleep 1000") as there:
        while not there.helpers.starts[0].ready_ns:  # noqa: ASYNC110 - a line on stderr tells
            await asyncio.sleep(0.01)
        with pytest.raises(HypervisorError, match="h1 has not begun to serve"):
            await there.unless_helpers_end(failing(silence))


async def test_what_is_the_machines_own_fault_stays_so() -> None:
    async with served(WAITS, WAITS) as there:
        with pytest.raises(HypervisorError, match="QEMU did not start"):
            await there.unless_helpers_end(failing(HypervisorError("QEMU did not start")))


async def test_helpers_that_follow_their_machine_are_not_blamed() -> None:
    async with served(f"echo {SERVES} >&2; exit 0") as there:
        with pytest.raises(HypervisorError, match="QEMU did not start"):
            await there.unless_helpers_end(failing(HypervisorError("QEMU did not start")))


async def test_what_comes_of_the_work_is_handed_on() -> None:
    async def work() -> int:
        return 7

    async with served(WAITS) as there:
        assert await there.unless_helpers_end(work()) == 7
