"""What ends a sandbox that nobody can reach any more."""

import asyncio
import shutil
import time
from collections.abc import Sequence

import pytest

from kata_runtime.errors import AgentError
from kata_runtime.process import launch
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


@pytest.mark.parametrize("never", [None, False], ids=["hangs", "refuses"])
async def test_an_agent_that_does_not_answer(never: bool | None) -> None:
    agent = Agent([True, True, never])
    begin = time.monotonic()
    async with asyncio.timeout(5):
        said = await first_failure([], agent, patience=0.05, period=0.005)
    assert said == "the agent has not answered for 0.05 s"
    assert time.monotonic() - begin >= 0.05
    assert agent.asked >= 3


async def test_an_agent_that_comes_back_is_forgiven() -> None:
    agent = Agent([False, False, True])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await first_failure([], agent, patience=0.1, period=0.005)
    assert agent.asked > 5


async def test_a_helper_that_ends() -> None:
    program = shutil.which("false")
    assert program is not None
    async with launch([program]) as child, asyncio.timeout(5):
        said = await first_failure([child], Agent([True]), patience=30, period=0.005)
    assert said == "false ended unexpectedly (exit status 1)"
