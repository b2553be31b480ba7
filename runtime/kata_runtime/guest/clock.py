"""How far the guest's clock is from the host's: a few round trips, the shortest one counts.

The guest answers with its CLOCK_MONOTONIC. It was read at some moment between our sending and our receiving, so the
offset is known to ± half the round trip, whatever the load (Cristian's method).
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from kata_common.contract import CLOCK_ANSWER, CLOCK_QUESTION, Port
from kata_runtime.errors import AgentError
from kata_runtime.guest.dial import dial
from kata_runtime.guest.transport import Transport
from kata_telemetry.clock import Clock
from kata_telemetry.span import Site

__all__ = ["Reading", "best", "measure"]

# Half a dozen milliseconds on a quiet host; on a busy one some round trip is undisturbed sooner or later.
_ROUNDS = 12
_MOST_ROUNDS = 100
_GOOD = 500_000  # ns
_trace = Site(package="virtcontainers", subsystem="clock")


@dataclass(frozen=True)
class Reading:
    """host time (ns) = guest CLOCK_MONOTONIC (ns) + offset_ns, within ± bound_ns.

    `wall_error_ns` is the guest's wall clock minus the host's.
    """

    offset_ns: int
    bound_ns: int
    wall_error_ns: int = 0


def best(samples: list[tuple[int, int, int, int]]) -> Reading:
    """The reading with the smallest bound from (sent, received: host ns; monotonic, realtime: guest ns). Pure."""
    readings = []
    for sent, received, monotonic, realtime in samples:
        middle = (sent + received) // 2
        readings.append(Reading(middle - monotonic, (received - sent + 1) // 2, realtime - middle))
    return min(readings, key=lambda reading: reading.bound_ns)


async def measure(transport: Transport, clock: Clock, *, timeout: float = 5.0, patience: float = 1.0) -> Reading:
    """Ask the agent's clock port a dozen times, and more often while the offset is known to worse than half a ms.

    More often for `patience` seconds at most: the guest of a slow host never gets that good. What was learnt within
    `timeout` seconds counts.

    Raises:
        AgentError: it does not answer.
    """
    loop = asyncio.get_running_loop()
    with _trace.stage("clockSync") as span:
        connection, _ = await dial(transport, Port.CLOCK, "clock")
        try:
            with connection:
                samples: list[tuple[int, int, int, int]] = []
                begin = loop.time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        while _worth_asking(samples, loop.time() - begin < patience):
                            samples.append(await _ask(loop, connection, clock, len(samples)))
        except OSError as error:
            raise AgentError("clock", "UNAVAILABLE", str(error)) from error
        if not samples:
            raise AgentError("clock", "UNAVAILABLE", f"no answer within {timeout:g} s")
        reading = best(samples)
        span.set(offset_ns=reading.offset_ns, bound_ns=reading.bound_ns, wall_error_ns=reading.wall_error_ns)
        return reading


def _worth_asking(samples: list[tuple[int, int, int, int]], time_left: bool) -> bool:
    if len(samples) < _ROUNDS:
        return True
    return time_left and len(samples) < _MOST_ROUNDS and best(samples).bound_ns > _GOOD


async def _ask(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, clock: Clock, number: int
) -> tuple[int, int, int, int]:
    sent = clock.to_host(clock.now())
    question = CLOCK_QUESTION.pack(number.to_bytes(CLOCK_QUESTION.size))
    await loop.sock_sendall(connection, question)
    answer = b""
    while len(answer) < CLOCK_ANSWER.size:
        chunk = await loop.sock_recv(connection, CLOCK_ANSWER.size - len(answer))
        if not chunk:
            raise ConnectionResetError("the guest closed its clock port")
        answer += chunk
    received = clock.to_host(clock.now())
    echoed, monotonic, realtime = CLOCK_ANSWER.unpack(answer)
    if echoed != question:
        raise ConnectionResetError("the guest's clock port answered something else")
    return sent, received, monotonic, realtime
