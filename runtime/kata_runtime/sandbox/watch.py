"""What a sandbox can't do without: its helpers, and an agent that answers."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from kata_runtime.errors import AgentError, quoted
from kata_runtime.hypervisor.machine import Machine
from kata_runtime.process import Child, describe

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.sandbox.vm import Vm

__all__ = ["Answering", "first_failure", "tell_of_end"]

# Seconds for a VM to be seen to have ended after a helper, which ends by itself when the machine's end of its socket
# closes: that is before the kernel has taken its memory apart and tells of its end.
_FOLLOWS = 5.0
# Of what a helper said last, the lines that are told.
_WORDS = 5
# Seconds between questions: Kata's monitor has the same (kata-facts.md: every 5 s).
PERIOD = 5.0


class Answering(Protocol):
    """What the watch needs of an agent's client."""

    async def check(self, *, timeout: float) -> None:
        """Return if the agent answers within `timeout` seconds, else raise AgentError."""


async def first_failure(
    machine: Machine, helpers: Sequence[Child], agent: Answering, *, patience: float, period: float = PERIOD
) -> str:
    """Wait until a helper ends, or the agent has not answered for `patience` seconds; what happened, in words.

    Empty where the helper had no fault, because the VM has ended.
    """
    waiting = [asyncio.create_task(child.wait()) for child in helpers]
    silence = asyncio.create_task(_silence(agent, patience, period))
    try:
        await asyncio.wait([*waiting, silence], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waiting, silence):
            task.cancel()
    for child in helpers:
        if child.status is not None:
            if child.status == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FOLLOWS):
                        await machine.wait()
                        return ""
            return f"{child.name} ended unexpectedly ({describe(child.status)})" + quoted(
                child.name, child.output, lines=_WORDS
            )
    return f"the agent has not answered for {patience:g} s"


async def _silence(agent: Answering, patience: float, period: float) -> None:
    """Return when the agent has not answered for `patience` seconds, whatever it does instead."""
    now = asyncio.get_running_loop().time
    answered = now()
    while now() - answered < patience:
        await asyncio.sleep(min(period, patience))
        if await _answers(agent, patience):
            answered = now()


async def _answers(agent: Answering, timeout: float) -> bool:
    try:
        await agent.check(timeout=timeout)
    except AgentError:
        return False
    return True


async def tell_of_end(vm: "Vm", agent: "AgentClient") -> None:
    """Wait for the end of a VM, and let who waits for its agent know."""
    await vm.machine.wait()
    agent.lost("the VM has ended")
