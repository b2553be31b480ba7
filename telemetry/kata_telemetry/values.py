"""What the parts of a span are made of."""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

__all__ = ["Event", "Kind", "Status", "Value"]

Value = str | bool | int | float


class Kind(IntEnum):
    """OTLP's span kinds (opentelemetry/proto/trace/v1/trace.proto)."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3


class Status(IntEnum):
    """OTLP's status codes."""

    UNSET = 0
    OK = 1
    ERROR = 2


class Event(NamedTuple):
    """Something that happened at one moment of a span; `time` is a local reading (ns)."""

    name: str
    time: int
    attributes: Mapping[str, Value]
