"""The standard descriptors of an entry point, whatever its caller left of them."""

import os
import sys

__all__ = ["fill"]


def fill() -> None:
    """Open /dev/null for those of 0, 1 and 2 that the caller closed (`>&-`), as Go's programs do.

    Else the next file that is opened would get such a number, and be written to as if it were standard output.
    """
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
