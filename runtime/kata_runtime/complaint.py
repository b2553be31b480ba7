"""What a command says when it fails: on stderr to a person, in the log to an engine that reads its last error there."""

import logging
import sys

from kata_common.text import told
from kata_runtime.errors import KataError

__all__ = ["LOGGER", "complain"]

# On stderr its records would say everything twice.
LOGGER = "kata.complaint"


def complain(error: KataError) -> int:
    """Say what went wrong and what to do; the exit code."""
    print(told(f"kata-runtime: {error}"), file=sys.stderr)
    if error.hint:
        print(told(f"  hint: {error.hint}"), file=sys.stderr)
    logging.getLogger(LOGGER).error("%s", error)
    return error.exit_code
