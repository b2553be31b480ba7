"""`kata-runtime direct-volume`: what CSI drivers say of volumes that only a guest mounts, and ask of them."""

import argparse
import json
import os
import posixpath
import urllib.parse

from kata_runtime.cli.control import ask
from kata_runtime.errors import HostError
from kata_runtime.sandbox import direct_volumes

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `direct-volume`; names of options are Kata's."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="say which device is behind the path of a volume")
    add.add_argument(
        "--mount-info", metavar="JSON", required=True, help='{"device": "/dev/…", "fstype": "ext4", "options": […]}'
    )
    add.set_defaults(run=_add)
    commands.add_parser("remove", help="say it no more; who has the volume keeps it").set_defaults(run=_remove)
    commands.add_parser("stats", help="print what it has and uses, as JSON").set_defaults(run=_stats)
    resize = commands.add_parser("resize", help="its device has grown: so does its file system")
    resize.add_argument("--size", metavar="BYTES", type=_size, required=True, help="what the device has now")
    resize.set_defaults(run=_resize)
    for command in commands.choices.values():
        command.add_argument(
            "--volume-path", metavar="PATH", type=_path, required=True, help="where containers mount it from"
        )


def _size(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 1 << 62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return posixpath.normpath(text)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise HostError("kata-runtime direct-volume needs root", hint="sudo kata-runtime direct-volume …")


def _add(options: argparse.Namespace) -> int:
    _require_root()
    direct_volumes.add(options.volume_path, options.mount_info)
    return 0


def _remove(options: argparse.Namespace) -> int:
    _require_root()
    direct_volumes.remove(options.volume_path)
    return 0


def _stats(options: argparse.Namespace) -> int:
    _require_root()
    query = urllib.parse.urlencode({"path": options.volume_path})
    answer = ask(direct_volumes.sandbox_of(options.volume_path), "GET", f"/direct-volume/stats?{query}")
    print(answer.decode().strip())
    return 0


def _resize(options: argparse.Namespace) -> int:
    _require_root()
    body = json.dumps({"VolumePath": options.volume_path, "Size": options.size}).encode()
    ask(direct_volumes.sandbox_of(options.volume_path), "POST", "/direct-volume/resize", body=body)
    return 0
