"""What options of several commands have in common: their values' meaning, and their errors."""

import argparse
import os
from collections.abc import Mapping, Sequence

from kata_runtime.errors import KataError

__all__ = ["absolute", "environment"]


def absolute(text: str) -> str:
    """A path in a container.

    Raises:
        ArgumentTypeError: it is not absolute; there is nothing that it could be relative to.
    """
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return text


def environment(entries: Sequence[str], ours: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """`K=V` as it is, and `K` with the value that it has for us; without one it is left out, as docker does.

    Raises:
        KataError: an entry without a name.
    """
    found = []
    for entry in entries:
        name, equals, _ = entry.partition("=")
        if not name:
            raise KataError(f"--env {entry!r} names no variable", hint="--env NAME=VALUE, or --env NAME for our value")
        if equals:
            found.append(entry)
        elif name in ours:
            found.append(f"{name}={ours[name]}")
    return tuple(found)
