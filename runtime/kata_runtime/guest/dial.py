"""Opening a stream to a port of the agent, with the error that the rest of the runtime expects."""

import socket

from kata_runtime.errors import AgentError
from kata_runtime.guest.transport import Transport

__all__ = ["dial"]


async def dial(transport: Transport, port: int, purpose: str) -> tuple[socket.socket, int]:
    """A connected stream to the agent's `port` and the host's port number of it.

    Raises:
        AgentError: nobody listens there, or the guest does not answer.
    """
    try:
        return await transport.connect(port)
    except OSError as error:  # TimeoutError is one
        reason = str(error) or type(error).__name__
        raise AgentError(purpose, "UNAVAILABLE", f"vsock port {port} can't be reached: {reason}") from error
