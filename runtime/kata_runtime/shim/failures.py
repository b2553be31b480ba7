"""The runtime's errors as the status codes that containerd's clients act on."""

import errno
import os

from kata_runtime.errors import (
    AgentError,
    CommandNotExecutableError,
    CommandNotFoundError,
    ConfigError,
    HostError,
    ImageError,
    KataError,
    RootfsError,
    SandboxError,
)
from kata_runtime.shim.ttrpc.errors import Code, FailedPrecondition, InvalidArgument, RpcError, Unknown

__all__ = ["to_status"]

# The agent's own codes that mean the same here. What else it may say is about its inner life.
_SAME = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
# In these calls "not found" is about a command or a stream; a client would take it for the container.
_MAKING = frozenset({"CreateContainer", "StartContainer", "ExecProcess"})
# Docker's client exits with 127 or 126 where it finds these in a message, as Go writes them (docker/cli,
# cli/command/container/run.go).
_REASONS = tuple(map(os.strerror, (errno.ENOENT, errno.EACCES, errno.EISDIR)))


def to_status(error: KataError) -> RpcError:
    """The status for an error of the runtime; its hint is part of the message, which is all that people get to see."""
    if isinstance(error, RpcError):
        return error
    message = f"{error} ({error.hint})" if error.hint else str(error)
    if isinstance(error, CommandNotFoundError | CommandNotExecutableError):
        for words in _REASONS:
            message = message.replace(words, words.lower())
    if isinstance(error, AgentError):
        if error.code in _SAME or (error.code == "NOT_FOUND" and error.method not in _MAKING):
            return RpcError.of(Code[error.code], message)
        return Unknown(message)
    if isinstance(error, ConfigError | RootfsError):
        return InvalidArgument(message)
    if isinstance(error, HostError | ImageError | SandboxError):
        return FailedPrecondition(message)
    return Unknown(message)
