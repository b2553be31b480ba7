import asyncio
import socket
import struct
import time

import pytest

from kata_common.contract import Port
from kata_runtime.errors import AgentError
from kata_runtime.guest.clock import best, measure
from support.clocks import answering
from support.fake_transport import FakeTransport, Handler


def test_the_shortest_round_trip_counts() -> None:
    # (sent, received: host; monotonic, realtime: guest)
    reading = best([(1000, 2000, 10, 990), (3000, 3100, 2040, 2990), (5000, 9000, 0, 0)])
    assert reading.offset_ns == 3050 - 2040
    assert reading.bound_ns == 50
    assert reading.wall_error_ns == 2990 - 3050


@pytest.mark.parametrize("delay", range(0, 101, 10))
def test_the_true_offset_lies_within_the_bound(delay: int) -> None:
    """Wherever between sending and receiving the guest read its clock."""
    true_offset = 5_000
    reading = best([(100, 200, 100 + delay - true_offset, 0)])
    assert abs(reading.offset_ns - true_offset) <= reading.bound_ns


class Local:
    """A clock whose readings are host time already."""

    def now(self) -> int:
        return time.monotonic_ns()

    def to_host(self, local_ns: int) -> int:
        return local_ns


def slow(seconds: float, rounds: int = 1000) -> Handler:
    """A guest that needs `seconds` for an answer, and gives only so many."""

    async def serve(stream: socket.socket, _: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            question = await loop.sock_recv(stream, 8)
            if not question:
                return
            await asyncio.sleep(seconds)
            await loop.sock_sendall(stream, question + struct.pack(">qq", time.monotonic_ns(), 0))
        await loop.sock_recv(stream, 8)
        await asyncio.sleep(10)

    return serve


@pytest.mark.parametrize("rounds", [1000, 3], ids=["slow", "stuck"])
async def test_a_slow_guest_is_taken_as_it_is(rounds: int) -> None:
    """A guest in an emulated guest: better a wide bound than no sandbox."""
    async with FakeTransport({Port.CLOCK: slow(0.005, rounds)}) as guest:
        begin = time.monotonic()
        reading = await measure(guest, Local(), timeout=0.2, patience=0.05)
    assert time.monotonic() - begin < 0.4  # a hundred rounds would take 0.5
    assert reading.bound_ns >= 2_500_000


async def hang_up(stream: socket.socket, _: int) -> None:
    await asyncio.get_running_loop().sock_recv(stream, 8)


async def never_answer(stream: socket.socket, _: int) -> None:
    while await asyncio.get_running_loop().sock_recv(stream, 8):
        pass


async def test_a_guest_that_answers() -> None:
    async with FakeTransport({Port.CLOCK: answering(lambda question, now: (question, now - 1_000_000_000))}) as guest:
        reading = await measure(guest, Local())
    assert abs(reading.offset_ns - 1_000_000_000) <= reading.bound_ns


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (answering(lambda question, now: (question + 1, now)), "answered something else"),
        (hang_up, "closed its clock port"),
        (never_answer, r"no answer within 0\.05 s"),
    ],
)
async def test_a_guest_that_does_not(handler: Handler, message: str) -> None:
    async with FakeTransport({Port.CLOCK: handler}) as guest:
        with pytest.raises(AgentError, match=message):
            await measure(guest, Local(), timeout=0.05)


async def test_a_guest_without_a_clock_port() -> None:
    async with FakeTransport() as guest:
        with pytest.raises(AgentError, match="vsock port 1028 can't be reached"):
            await measure(guest, Local())
