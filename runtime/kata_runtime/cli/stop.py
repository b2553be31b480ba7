"""`kata-runtime stop`: ask a sandbox's containers to end, and see to it."""

import argparse
import contextlib
import signal
import time

from kata_runtime.engine.life import number_of
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments"]

# Seconds for what was killed.
_PATIENCE = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stop`."""
    parser.add_argument(
        "-t",
        "--time",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="how long it may take by itself (default: 10)",
    )
    parser.add_argument("-s", "--signal", metavar="SIGNAL", type=number_of, default="TERM", help="(default: TERM)")
    parser.add_argument("sandboxes", metavar="SANDBOX", nargs="+", help="sandboxes, or containers of one")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    if not text.replace(".", "", 1).isdecimal() or float(text) > 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def run(options: argparse.Namespace) -> int:
    """Handler of the command."""
    reach.require_root()
    for name in options.sandboxes:
        target = reach.find(name)
        with reach.Life(target.sandbox) as life:
            _stop(target, options.signal, options.time)
            # With its own container a sandbox goes as a whole.
            if target.container == target.sandbox and not life.over(_PATIENCE):
                raise SandboxError(f"sandbox {target.sandbox} does not end", hint="see the log of its runtime")
        print(name)
    return 0


def _stop(target: reach.Target, number: int, patience: float) -> None:
    with reach.Connection.open(target.sandbox) as connection:
        connection.send({"op": "attach", "container": target.container})
        connection.send({"signal": number, "all": False})
        if connection.ended(time.monotonic() + patience):
            return
        with contextlib.suppress(SandboxError):
            connection.send({"signal": signal.SIGKILL, "all": True})
        if not connection.ended(time.monotonic() + _PATIENCE):
            raise SandboxError(f"container {target.container} does not end", hint="kata-runtime logs tells more")
