"""`kata-runtime image list` and `prune`: what `run --image` has unpacked and keeps; `pull` fetches what it takes."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from kata_common.text import printable
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
    pull = images.add_parser("pull", help="fetch a container image into a file, which run --image takes")
    pull.add_argument("-o", "--output", metavar="FILE", type=Path, help="(default: NAME.tar in this directory)")
    pull.add_argument("image", metavar="NAME", help="in a registry, NAME:TAG; or as skopeo has it: docker://, oci:, …")
    pull.set_defaults(run=_pull)


def _pull(options: argparse.Namespace) -> int:
    from kata_runtime.oci.pull import file_of, pull

    file = options.output or file_of(options.image)
    print(f"pulling {printable(options.image)} ...", file=sys.stderr)
    asyncio.run(pull(options.image, file))
    print(f"kata-runtime run --image {file} -- COMMAND")
    return 0


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
