"""gRPC's status codes as exceptions: what a method raises is what the other side gets, and the other way round.

Codes are those of google/rpc/code.proto. containerd's clients act on the code (`errdefs.IsNotFound`…), people read the
message.
"""

from enum import IntEnum
from typing import ClassVar

from kata_runtime.errors import KataError

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Code",
    "ConnectionLost",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "RpcError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]


class Code(IntEnum):
    """google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(KataError):
    """A call ended with a status other than OK. Raise one of the subclasses."""

    code: ClassVar[Code] = Code.UNKNOWN

    @staticmethod
    def of(code: int, message: str) -> "RpcError":
        """The exception for a status that was received; a code that nobody defined yet becomes `Unknown`."""
        kind = _BY_CODE.get(code)
        return kind(message) if kind else Unknown(f"{message} (status code {code})")


class Cancelled(RpcError):
    code = Code.CANCELLED


class Unknown(RpcError):
    code = Code.UNKNOWN


class InvalidArgument(RpcError):
    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RpcError):
    code = Code.DEADLINE_EXCEEDED


class NotFound(RpcError):
    code = Code.NOT_FOUND


class AlreadyExists(RpcError):
    code = Code.ALREADY_EXISTS


class PermissionDenied(RpcError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(RpcError):
    code = Code.RESOURCE_EXHAUSTED


class FailedPrecondition(RpcError):
    code = Code.FAILED_PRECONDITION


class Aborted(RpcError):
    code = Code.ABORTED


class OutOfRange(RpcError):
    code = Code.OUT_OF_RANGE


class Unimplemented(RpcError):
    code = Code.UNIMPLEMENTED


class Internal(RpcError):
    code = Code.INTERNAL


class Unavailable(RpcError):
    code = Code.UNAVAILABLE


class DataLoss(RpcError):
    code = Code.DATA_LOSS


class Unauthenticated(RpcError):
    code = Code.UNAUTHENTICATED


_BY_CODE: dict[int, type[RpcError]] = {kind.code: kind for kind in RpcError.__subclasses__()}


class ConnectionLost(Unavailable):
    """The connection ended, or there was none, before the answer: whether the call was carried out is unknown."""
