"""What an administrator has to be told once, and not by every sandbox."""

import os
from pathlib import Path

from kata_common import places

__all__ = ["first_time"]


def first_time(name: str, text: str, directory: Path = Path(places.RUN_DIR)) -> bool:
    """Whether `text` is told for the first time on this host since it booted, or differs from what `name` last said.

    The directory is root's alone and empty after a boot. Where it can't be written, everything is told.
    """
    # No sandbox has a name with a dot in front.
    path = directory / f".told-{name}"
    try:
        if path.read_text() == text:
            return False
    except (OSError, ValueError):
        pass
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except OSError:
        pass
    return True
