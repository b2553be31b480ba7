"""Opening a stream to a port of the agent, with the error that the rest of the runtime expects."""

import socket

from kata_runtime.errors import AgentError
from kata_runtime.guest.transport import Transport
from kata_telemetry.span import Site

__all__ = ["dial"]

_trace = Site(package="virtcontainers", subsystem="vsock")


async def dial(transport: Transport, port: int, purpose: str) -> tuple[socket.socket, int]:
    """A connected stream to the agent's `port` and the host's port number of it.

    Raises:
        AgentError: nobody listens there, or the guest does not answer.
    """
    try:
        with _trace.span("dial", port=port, purpose=purpose):
            return await transport.connect(port)
    except OSError as error:  # TimeoutError is one
        reason = str(error) or type(error).__name__
        raise AgentError(purpose, "UNAVAILABLE", f"vsock port {port} can't be reached: {reason}") from error
