"""Values of attributes as JSON that every reader takes."""

import math
from typing import Final

__all__ = ["SAFE_INTEGERS", "portable"]

# What a double holds exactly, and therefore JavaScript.
SAFE_INTEGERS: Final = range(-(2**53) + 1, 2**53)


def portable(value: object) -> str | bool | int | float:
    """A value that JSON has and JavaScript holds exactly: other integers, NaN and infinities become texts."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value in SAFE_INTEGERS else str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
