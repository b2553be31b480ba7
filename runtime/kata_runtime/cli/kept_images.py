"""`kata-runtime image list` and `prune`: what `run --image` has unpacked and keeps."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime

from kata_runtime.sandbox.reach import require_root

__all__ = ["add_arguments"]


def add_arguments(images: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands and their options."""
    for name, handler, says in (
        ("list", _list, "list the container images that run has unpacked"),
        ("prune", _prune, "remove those that no container uses"),
    ):
        command = images.add_parser(name, help=says)
        command.add_argument("--json", action="store_true", help="as JSON")
        command.set_defaults(run=handler)


def _list(options: argparse.Namespace) -> int:
    from kata_runtime.oci.image import kept_images

    require_root()
    images = kept_images()
    if options.json:
        print(json.dumps([asdict(image) for image in images]))
        return 0
    print(f"{'DIGEST':64}  {'UNPACKED':20}  USED")
    for image in images:
        when = datetime.fromtimestamp(int(image.unpacked), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        print(f"{image.digest:64}  {when}  {'yes' if image.used else 'no'}")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from kata_runtime.oci.image import prune

    require_root()
    gone = prune()
    print(json.dumps(gone) if options.json else "\n".join(gone) or "nothing to remove")
    return 0
