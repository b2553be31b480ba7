"""What can go wrong in the guest, as the runtime gets to see it.

Every error names the gRPC status it becomes (`status`, a name of grpc.StatusCode: this module must not import grpc)
and, where the host acts on it, a marker that travels in the trailing metadata (`kata_common.contract.Marker`).
"""

from kata_common.contract import Marker

__all__ = [
    "AgentError",
    "AlreadyExistsError",
    "CommandNotExecutableError",
    "CommandNotFoundError",
    "CrunError",
    "DeniedError",
    "InvalidError",
    "NotFoundError",
    "PreconditionError",
    "ResourceError",
    "SetupError",
    "TimedOutError",
]


class AgentError(Exception):
    """Base of the tree. `str()` is one sentence for a person: what, where, and what to do."""

    status = "INTERNAL"
    marker: Marker | None = None


class InvalidError(AgentError):
    """The request itself is wrong; repeating it can't help."""

    status = "INVALID_ARGUMENT"


class NotFoundError(AgentError):
    """Names a sandbox, container, process or stream that isn't there."""

    status = "NOT_FOUND"


class AlreadyExistsError(AgentError):
    """The id is taken."""

    status = "ALREADY_EXISTS"


class PreconditionError(AgentError):
    """Right request, wrong state."""

    status = "FAILED_PRECONDITION"


class ResourceError(AgentError):
    """A bound of the agent or of the guest is reached."""

    status = "RESOURCE_EXHAUSTED"


class TimedOutError(AgentError):
    """Something in the guest did not happen in time."""

    status = "DEADLINE_EXCEEDED"


class DeniedError(AgentError):
    """The sandbox's policy forbids the call."""

    status = "PERMISSION_DENIED"


class SetupError(AgentError):
    """The guest could not be prepared (mount, module, namespace, clock)."""


class CrunError(AgentError):
    """crun failed; `command` is its subcommand, `text` its own words."""

    def __init__(self, command: str, text: str) -> None:
        super().__init__(f"crun {command}: {text}")
        self.command = command
        self.text = text


class CommandNotFoundError(CrunError):
    """The container has no such command; a shell would exit 127."""

    status = "NOT_FOUND"
    marker = Marker.COMMAND_NOT_FOUND


class CommandNotExecutableError(CrunError):
    """The command is there and can't be executed; a shell would exit 126."""

    status = "FAILED_PRECONDITION"
    marker = Marker.COMMAND_NOT_EXECUTABLE
