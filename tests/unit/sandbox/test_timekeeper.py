"""A guest's clock that drifts is measured again, and the agent told."""

import asyncio
import time

import pytest

from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_runtime.errors import AgentError
from kata_runtime.guest.clock import Reading
from kata_runtime.sandbox.timekeeper import keep_time, note
from kata_telemetry.clock import GuestClock, HostClock
from kata_telemetry.span import Span, Tracer, current
from support.clocks import answering
from support.fake_transport import FakeTransport

MS = 1_000_000


class Agent:
    """Takes the calls; the first `failures` of them fail."""

    service = type("Service", (), {"SetGuestDateTime": None})

    def __init__(self, wanted: int, failures: int = 0) -> None:
        self.told: list[pb.Clock] = []
        self.done = asyncio.Event()
        self._wanted = wanted
        self._failures = failures

    async def call(self, _: object, request: pb.SetGuestDateTimeRequest, *, timeout: float) -> None:
        assert not current().recording
        if self._failures:
            self._failures -= 1
            raise AgentError("SetGuestDateTime", "UNAVAILABLE", "busy")
        self.told.append(request.clock)
        if len(self.told) == self._wanted:
            self.done.set()


async def kept(agent: Agent, drift: float, step: int = 0) -> Span:
    """Keep the time of a guest whose clock loses `drift` of each second and `step` ns at once; the root, when that is
    told.
    """
    host = HostClock()
    begin = host.now()
    root = Tracer("kata", lambda _: None).start("rootSpan")
    first = Reading(host.to_host(0), MS // 10)
    note(root, first)
    serve = answering(lambda echo, monotonic: (echo, int(monotonic - (monotonic - begin) * drift) - step))
    async with FakeTransport({Port.CLOCK: serve}) as transport:
        keeper = asyncio.create_task(keep_time(transport, agent, host, root, first, every=0.01))  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await agent.done.wait()
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
    return root


async def test_a_drifting_clock_is_told_and_noted_on_the_root() -> None:
    agent = Agent(wanted=3)
    root = await kept(agent, drift=0.2)
    attributes = root.attributes
    assert list(root.events) == []
    offsets = [clock.offset_ns for clock in agent.told]
    assert offsets == sorted(offsets)
    assert int(attributes["clock_drift_ns"]) > 0
    assert attributes["clock_offset_ns"] == offsets[-1]
    assert attributes["clock_bound_ns"] == agent.told[-1].bound_ns


async def test_a_clock_that_was_set_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    root = await kept(Agent(wanted=1), drift=0, step=300 * MS)
    (event,) = root.events
    assert event.name == "clockStepped"
    assert int(event.attributes["offset_change_ns"]) == pytest.approx(300 * MS, abs=20 * MS)
    assert "the guest's clock was off by -0.3" in caplog.text


async def test_a_turn_that_fails_is_not_the_last() -> None:
    agent = Agent(wanted=1, failures=2)
    await kept(agent, drift=0.5)
    assert len(agent.told) >= 1


def test_each_span_is_stamped_with_the_reading_of_its_time() -> None:
    clock = GuestClock()
    clock.set_offset(1000, 10)
    between = time.monotonic_ns()
    clock.set_offset(2000, 10)
    after = time.monotonic_ns()
    assert clock.to_host(between) == between + 1000
    assert clock.to_host(after) == after + 2000
