"""What a sandbox can't do without: its helpers, and an agent that answers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kata_runtime.errors import AgentError
from kata_runtime.process import Child, describe

__all__ = ["Answering", "first_failure"]

# Seconds between questions: Kata's monitor has the same (kata-facts.md: every 5 s).
PERIOD = 5.0


class Answering(Protocol):
    """What the watch needs of an agent's client."""

    async def check(self, *, timeout: float) -> None:
        """Return if the agent answers within `timeout` seconds, else raise AgentError."""


async def first_failure(helpers: Sequence[Child], agent: Answering, *, patience: float, period: float = PERIOD) -> str:
    """Wait until a helper ends, or the agent has not answered for `patience` seconds; what happened, in words."""
    waiting = [asyncio.create_task(child.wait()) for child in helpers]
    silence = asyncio.create_task(_silence(agent, patience, period))
    try:
        await asyncio.wait([*waiting, silence], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waiting, silence):
            task.cancel()
    for child in helpers:
        if child.status is not None:
            return f"{Path(child.argv[0]).name} ended unexpectedly ({describe(child.status)})"
    return f"the agent has not answered for {patience:g} s"


async def _silence(agent: Answering, patience: float, period: float) -> None:
    """Return when the agent has not answered for `patience` seconds, whatever it does instead."""
    now = asyncio.get_running_loop().time
    answered = now()
    while now() - answered < patience:
        await asyncio.sleep(period)
        if await _answers(agent, patience):
            answered = now()


async def _answers(agent: Answering, timeout: float) -> bool:
    try:
        await agent.check(timeout=timeout)
    except AgentError:
        return False
    return True
