"""Keeps a guest's clock offset true while its sandbox lives.

The host's clocks are slewed by NTP, the guest's is not: they part by up to some 50 millionths, which is a millisecond
in 20 s and seconds in a day. The agent stamps each span with the reading that was the newest then.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from kata_runtime.errors import AgentError
from kata_runtime.guest import clock
from kata_runtime.guest.clock import Reading
from kata_runtime.guest.transport import Transport
from kata_telemetry.clock import Clock
from kata_telemetry.span import NO_SPAN, Span, use

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["INTERVAL", "keep_time", "note"]

# Seconds. At 50 millionths the clocks part by 1.5 ms meanwhile; a measurement takes some ms of both sides.
INTERVAL = 30.0
# Nanoseconds in one interval that no slewing makes: somebody has set the clock, or it runs at a wrong rate.
STEP = 50_000_000
_log = logging.getLogger("kata.clock")


def note(root: Span, reading: Reading, drift_ns: int = 0) -> None:
    """Say on the trace's root how well the guest's clock is known; `drift_ns` is since the first reading."""
    root.set(clock_offset_ns=reading.offset_ns, clock_bound_ns=reading.bound_ns, clock_drift_ns=drift_ns)


async def keep_time(
    transport: Transport, agent: "AgentClient", host: Clock, root: Span, first: Reading, *, every: float = INTERVAL
) -> None:
    """Measure again and again and tell the agent, until cancelled. What fails is tried at the next turn."""
    from kata_protos import agent_pb2 as pb

    best = first
    # Without spans of its own: for a sandbox that lives for weeks they would be most of its trace.
    with use(NO_SPAN):
        while True:
            await asyncio.sleep(every)
            try:
                reading = await clock.measure(transport, host)
                moved = abs(reading.offset_ns - best.offset_ns)
                # A reading that is no better and agrees with the last one says nothing new.
                if moved <= reading.bound_ns + best.bound_ns and reading.bound_ns >= best.bound_ns:
                    continue
                request = pb.SetGuestDateTimeRequest(
                    clock=pb.Clock(offset_ns=reading.offset_ns, bound_ns=reading.bound_ns)
                )
                await agent.call(agent.service.SetGuestDateTime, request, timeout=every)
            except AgentError as error:
                _log.debug("the guest's clock was not measured", extra={"error": str(error)})
                continue
            if moved > STEP:
                by = reading.offset_ns - best.offset_ns
                root.event("clockStepped", offset_change_ns=by)
                _log.warning("the guest's clock was off by %.3f s; so are its last spans", -by / 1e9)
            best = reading
            note(root, reading, reading.offset_ns - first.offset_ns)
