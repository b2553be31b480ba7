"""W3C Trace Context: a span's ids as they cross process borders, and what is taken of the headers that carry them.

The grammar is that of https://www.w3.org/TR/trace-context-2/; docs/decisions/0033 says where we are stricter.
"""

import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

__all__ = ["SpanContext", "random_id", "tracestate"]

# Trace flags that mean something: sampled, and that the trace id is random. All others are zero onwards (4.3, 3.2.2.5).
KNOWN_FLAGS: Final = 0x03
# Optional white space around a header's value and a list's members (RFC 9110, 5.6.3).
_OWS: Final = " \t"
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
# 3.3.1.3: what is no comma, no equals sign and printable, and does not end in a blank. One @ at most.
_MEMBER: Final = re.compile(
    r"(?=[^=]{1,256}=)([a-z0-9][a-z0-9_\-*/]*(?:@[a-z0-9_\-*/]*)?)"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)
MAX_MEMBERS: Final = 32
# At least so many characters are passed on by everybody (3.3.1.5); what is more costs all who come after us.
MAX_STATE: Final = 512
# The members that go first where that is too much.
_LARGE: Final = 128


class SpanContext(NamedTuple):
    """What crosses process borders. `flags` are W3C trace-flags, bit 0 is sampled; `state` is W3C `tracestate`."""

    trace_id: int
    span_id: int
    flags: int = 1
    state: str = ""

    def to_traceparent(self) -> str:
        """W3C Trace Context, version 00."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    @classmethod
    def from_traceparent(cls, text: str) -> Self | None:
        """The context in a `traceparent` header, or None where it is not a valid one."""
        found = _TRACEPARENT.fullmatch(text.strip(_OWS))
        # ff is no version; later ones may have more parts, 00 has four.
        if found is None or found[1] == "ff" or (found[1] == "00" and found[5] is not None):
            return None
        context = cls(int(found[2], 16), int(found[3], 16), int(found[4], 16) & KNOWN_FLAGS)
        return context if context.trace_id and context.span_id else None


def tracestate(headers: Iterable[str]) -> str:
    """One `tracestate` of several headers' values, in their order; "" where they are not valid as a whole.

    Of members with the same key the first one stays. Beyond 512 characters whole members go: the large ones first, then
    those at the end (3.3.1.5).
    """
    members: dict[str, str] = {}
    for number, member in enumerate(filter(None, (part.strip(_OWS) for part in ",".join(headers).split(",")))):
        found = _MEMBER.fullmatch(member)
        if found is None or number >= MAX_MEMBERS:
            return ""
        members.setdefault(found[1], member)
    kept = list(members.values())
    while len(",".join(kept)) > MAX_STATE:
        kept.remove(next((member for member in reversed(kept) if len(member) > _LARGE), kept[-1]))
    return ",".join(kept)


def random_id(size: int) -> int:
    """A trace id (16 bytes) or a span id (8)."""
    # os.urandom, not a seeded generator: two clones of one template must not draw the same ids.
    return int.from_bytes(os.urandom(size), "big") or 1
