"""What ends a sandbox that nobody can reach any more."""

import asyncio
import shutil
import time
from collections.abc import Sequence

import pytest

from kata_runtime.errors import AgentError
from kata_runtime.hypervisor.fake import FakeMachine
from kata_runtime.process import launch
from kata_runtime.sandbox import watch
from kata_runtime.sandbox.watch import first_failure


class Agent:
    """Answers as told, the last answer for ever; None never answers."""

    def __init__(self, answers: Sequence[bool | None]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def check(self, *, timeout: float) -> None:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await asyncio.sleep(timeout)
        if not answer:
            raise AgentError("Check", "UNAVAILABLE" if answer is False else "DEADLINE_EXCEEDED", "no answer")


@pytest.fixture
async def vm() -> FakeMachine:
    """Lives until it is killed."""
    return FakeMachine()


@pytest.mark.parametrize("never", [None, False], ids=["hangs", "refuses"])
async def test_an_agent_that_does_not_answer(vm: FakeMachine, never: bool | None) -> None:
    agent = Agent([True, True, never])
    begin = time.monotonic()
    async with asyncio.timeout(5):
        said = await first_failure(vm, [], agent, patience=0.05, period=0.005)
    assert said == "the agent has not answered for 0.05 s"
    assert time.monotonic() - begin >= 0.05
    assert agent.asked >= 3


async def test_an_agent_that_comes_back_is_forgiven(vm: FakeMachine) -> None:
    agent = Agent([False, False, True])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await first_failure(vm, [], agent, patience=0.1, period=0.005)
    assert agent.asked > 5


async def test_a_helper_that_ends(vm: FakeMachine) -> None:
    program = shutil.which("false")
    assert program is not None
    async with launch([program]) as child, asyncio.timeout(5):
        said = await first_failure(vm, [child], Agent([True]), patience=30, period=0.005)
    assert said == "false ended unexpectedly (exit status 1)"


async def test_a_helper_that_ends_because_the_vm_does(vm: FakeMachine) -> None:
    """virtiofsd ends with status 0 when QEMU is gone, and is seen to before QEMU is."""
    program = shutil.which("true")
    assert program is not None
    async with launch([program]) as child, asyncio.timeout(5):
        failure = asyncio.create_task(first_failure(vm, [child], Agent([True]), patience=30, period=0.005))
        await child.wait()
        vm.kill()
        assert await failure == ""


async def test_a_helper_that_ends_although_the_vm_lives(vm: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_FOLLOWS", 0.01)
    program = shutil.which("true")
    assert program is not None
    async with launch([program]) as child, asyncio.timeout(5):
        said = await first_failure(vm, [child], Agent([True]), patience=30, period=0.005)
    assert said == "true ended unexpectedly (exit status 0)"
