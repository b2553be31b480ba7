"""JSON that others wrote."""

import json

# The shim's start imports this, and typing costs it more than all that it has to do.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["parse_json"]


def parse_json(content: str | bytes | bytearray) -> "Any":  # noqa: ANN401 - JSON of unknown shape
    """What is in it.

    Raises:
        ValueError: it is no JSON, or nested more deeply than this process can follow: a few kilobytes are enough for
            that, and `json` has another error for it, which callers forget (a test holds that they come here).
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
