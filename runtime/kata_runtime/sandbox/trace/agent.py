"""The agent's side of a sandbox's trace: it is told what to trace, and its spans are taken into the store."""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from kata_runtime.errors import AgentError
from kata_runtime.sandbox.trace.store import FLUSH_TIMEOUT
from kata_telemetry.span import Site, Span, use

if TYPE_CHECKING:
    from kata_protos import agent_pb2 as pb
    from kata_runtime.guest.agent import AgentClient
    from kata_traces.store.writer import StoreWriter

__all__ = ["AgentSide"]

_trace = Site(package="runtime", subsystem="runtime")
_log = logging.getLogger("kata.tracing")
# The first call through gRPC costs a fresh clone 0.1 s (docs/decisions/0041): after the start, or so late, in seconds.
_TAKE_AFTER, _MOMENT = 1.0, 0.2


class AgentSide:
    """One agent, and the task that takes its spans, once it was to trace."""

    def __init__(self, agent: "AgentClient") -> None:
        self._agent = agent
        self._spans: asyncio.Task[None] | None = None
        self._now = asyncio.Event()

    @property
    def taken(self) -> bool:
        """Whether its spans were ever taken."""
        return self._spans is not None

    def take(self, writer: "StoreWriter") -> None:
        """Take its spans into the store, from `hurry` or a second on, until it has no more. Safe to repeat."""
        if self._spans is None or self._spans.done():
            self._spans = asyncio.create_task(self._take(writer))

    def soon(self) -> None:
        """The first process runs: take what there is when it has had a moment for its first output."""
        asyncio.get_running_loop().call_later(_MOMENT, self._now.set)

    def hurry(self) -> None:
        """There soon will be no time."""
        self._now.set()

    async def _take(self, writer: "StoreWriter") -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_AFTER):
                await self._now.wait()
        async for batch in self._agent.spans():
            writer.write_otlp(batch.otlp, dropped=batch.dropped)

    async def tell(self, setting: "pb.Tracing", root: Span) -> None:
        """Tell it what to trace from now on.

        Raises:
            AgentError: it does not answer.
        """
        self.hurry()
        from kata_protos import agent_pb2 as pb

        with use(root):
            request = pb.SetTracingRequest(tracing=setting)
            await self._agent.call(self._agent.service.SetTracing, request, timeout=FLUSH_TIMEOUT)

    async def drained(self) -> None:
        """Wait, within a bound, for the last spans of an agent that was told to trace no more."""
        if self._spans is not None:
            await asyncio.wait([self._spans], timeout=FLUSH_TIMEOUT)

    async def finish(self) -> None:
        """Let it end its part and wait, within a bound, for its last spans."""
        self.hurry()
        if self._spans is None or self._spans.done():
            return
        from kata_protos import agent_pb2 as pb

        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                request = pb.DestroySandboxRequest()
                await self._agent.call(self._agent.service.DestroySandbox, request, timeout=FLUSH_TIMEOUT)
                with _trace.span("awaitSpans"):
                    await asyncio.shield(self._spans)
        except (AgentError, TimeoutError) as error:
            _log.warning("the agent's last spans did not come", extra={"error": str(error)})
        finally:
            self._spans.cancel()
