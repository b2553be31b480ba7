"""`kata-runtime image build`."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from kata_runtime.image import DEFAULT_CACHE, DEFAULT_OUTPUT

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `image build` to its parser."""
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--force", action="store_true", help="ask the mirror for today's package versions and build everything anew"
    )


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> int:
    """Build as `args` says; the exit status. Raises ImageError."""
    from kata_runtime.image import builder

    # An orderly end on SIGTERM too, so that what was half built goes.
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        manifest = builder.build(args.output, cache=args.cache, progress=progress, force=args.force)
    finally:
        signal.signal(signal.SIGTERM, previous)
    progress(f"image {manifest.digest[:12]}, kernel {manifest.kernel_version}: {args.output}")
    return 0


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
