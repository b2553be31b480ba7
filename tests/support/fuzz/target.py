"""What a target of fuzzing is, and the property that each of them has.

A parser of bytes that somebody else made may refuse them by the errors that it declares, and by no others; in bounded
time and memory; and what it took must come back the same where there is an encoder (the target's function asserts so).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from kata_runtime.errors import KataError

__all__ = ["LARGEST", "BrokenPromiseError", "Shape", "Target", "text_of"]

# Bytes of an input that the engines make.
LARGEST = 64 << 10


class Shape(StrEnum):
    """What an input is made of, by which it is changed."""

    JSON = "json"
    TEXT = "text"
    BYTES = "bytes"


class BrokenPromiseError(AssertionError):
    """A parser took too long, or raised what it does not declare."""


@dataclass(frozen=True)
class Target:
    """A parser. `function` names it for people, `parse` calls it with one input.

    `allowed` are the errors by which it may refuse; an input that it takes returns. `seeds` are inputs that it takes,
    `words` what may stand in one. `seconds` (of CPU) is what one input may take.
    """

    name: str
    function: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = (KataError,)
    shape: Shape = Shape.BYTES
    words: tuple[bytes, ...] = ()
    seconds: float = 2.0

    def check(self, data: bytes) -> bool:
        """Whether `data` was taken. Raises BrokenPromiseError, AssertionError."""
        begun = time.process_time()
        try:
            self.parse(data)
            taken = True
        except self.allowed as error:
            taken = False
            if not str(error):
                raise BrokenPromiseError(f"{self.name}: {type(error).__name__} without a word") from error
        except AssertionError:
            raise
        except Exception as error:
            raise BrokenPromiseError(f"{self.name}: {type(error).__name__} is none of its errors: {error}") from error
        took = time.process_time() - begun
        if took > self.seconds:
            raise BrokenPromiseError(f"{self.name}: {len(data)} bytes took {took:.2f} s of CPU")
        return taken


def text_of(parts: Iterable[str]) -> tuple[bytes, ...]:
    """Texts as inputs."""
    return tuple(part.encode() for part in parts)
