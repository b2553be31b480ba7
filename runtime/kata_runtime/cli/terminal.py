"""The terminal that a container is attached to."""

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["raw_mode", "size"]


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass every key through for the block: the guest's terminal interprets them, Ctrl-C included."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size(fd: int) -> tuple[int, int]:
    """Rows and columns."""
    columns, rows = os.get_terminal_size(fd)
    return rows, columns
