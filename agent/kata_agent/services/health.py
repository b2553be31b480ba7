"""grpc.Health of the contract: whether the agent serves, and which versions it is made of."""

from typing import Any

from kata_protos import agent_pb2

__all__ = ["VERSION", "Health"]

VERSION = "0.1.0"
# Of the contract (protos/agent.proto), not of grpcio.
CONTRACT = "0.1.0"


class Health:
    """Methods are called by the funnel, with a request of the contract."""

    async def check(self, _: Any) -> agent_pb2.HealthCheckResponse:  # noqa: ANN401
        return agent_pb2.HealthCheckResponse(status=agent_pb2.HealthCheckResponse.SERVING)

    async def version(self, _: Any) -> agent_pb2.VersionCheckResponse:  # noqa: ANN401
        return agent_pb2.VersionCheckResponse(grpc_version=CONTRACT, agent_version=VERSION)
