"""The runtime's end of the agent's API, with an agent that says what it likes."""

from typing import Any

import grpc.aio
import pytest

from kata_protos import agent_pb2 as pb
from kata_runtime.errors import AgentError
from kata_runtime.guest.agent import AgentClient


async def call(answer: object) -> Any:
    async def method(_: object, **__: object) -> object:
        return answer

    async with grpc.aio.insecure_channel("unix:/nowhere/at/all") as channel:
        # What it needs of a gRPC call is that it can be awaited and cancelled.
        return await AgentClient(channel).call(method, pb.StatsContainerRequest(container_id="c"))  # type: ignore[arg-type]


async def test_an_answer_that_is_too_long() -> None:
    answer = pb.StatsContainerResponse()
    answer.files["memory.stat"] = "anon 1\n" * 100
    assert await call(answer) is answer
    answer.files["memory.stat"] = "anon 1\n" * 100_000
    with pytest.raises(AgentError, match=r"StatsContainer: an answer of 700\d\d\d bytes, more than 524288"):
        await call(answer)
