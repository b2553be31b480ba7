"""The user's pager: one of the doors to child processes (tests/unit/test_import_rule.py)."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from typing import IO

from kata_traces.commands.output import to_stdout

__all__ = ["paged"]


def paged(write: Callable[[IO[str]], object], *, lines: int, pager: bool = True) -> int:
    """As `to_stdout`; what is longer than the terminal goes through $PAGER, else less, if there is one."""
    program = (os.environ.get("KATA_PAGER") or os.environ.get("PAGER") or "less").strip()
    if not (pager and sys.stdout.isatty() and lines >= shutil.get_terminal_size().lines and program != "cat"):
        return to_stdout(write)
    import shlex

    # Colours pass, long lines are cut; whoever is root by sudo gets no shell by it (less(1), LESSSECURE).
    environment = {"LESS": "FRSX", "LESSCHARSET": "utf-8", **os.environ, "LESSSECURE": "1"}
    reader, writer = os.pipe()
    try:
        argv = shlex.split(program)
        pid = os.posix_spawnp(argv[0], argv, environment, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
    except (OSError, ValueError, IndexError):
        os.close(writer)
        return to_stdout(write)
    finally:
        os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w", encoding="utf-8") as stream:
        write(stream)
    # Its keys are its own: Ctrl-C stops a search there, and not us.
    while True:
        try:
            os.waitpid(pid, 0)
            return 0
        except KeyboardInterrupt:
            continue
