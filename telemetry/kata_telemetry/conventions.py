"""Names of attributes that are said in one place and read in another; docs/tracing.md has all of them."""

from typing import Final

__all__ = ["FAILURE_HINT"]

# Of a span that failed: what to do about it.
FAILURE_HINT: Final = "kata.hint"
