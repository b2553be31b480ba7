"""What options of several commands have in common: their values' meaning, and their errors."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata_common.files import exists
from kata_runtime.errors import KataError
from kata_runtime.sandbox.network.publish import Publication

__all__ = ["absolute", "environment", "published", "volume"]


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


def volume(text: str) -> dict[str, Any]:
    """A mount as config.json has it, of `SRC:DST` and `ro` or `rw`.

    Raises:
        ArgumentTypeError: it is none, or SRC is not there.
    """
    source, _, rest = text.partition(":")
    destination, _, access = rest.partition(":")
    if not source or access not in ("", "ro", "rw"):
        raise argparse.ArgumentTypeError(f"{text!r} is not SRC:DST, SRC:DST:ro or SRC:DST:rw")
    if not destination.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r}: the path in the container, {destination!r}, is not absolute")
    path = Path(source).absolute()
    if not exists(path):
        raise argparse.ArgumentTypeError(f"{text!r}: there is no {path}")
    return {"destination": destination, "type": "bind", "source": str(path), "options": ["rbind", access or "rw"]}


def published(text: str) -> Publication:
    """A port of the host and one of the guest, see `Publication.parse`.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        return Publication.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
