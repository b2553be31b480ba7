"""`kata-runtime config`: what holds here, whether it is right, and what holds without any file."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kata_common.documents import parse_json
from kata_runtime.cli.toml import dump
from kata_runtime.config import Config, load

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `config`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, handler, says in (
        ("show", _show, "print the configuration that holds here, all files and defaults taken together"),
        ("check", _check, "say which files are read, or what is wrong with them"),
        ("default", _default, "print what holds without any file"),
    ):
        command = commands.add_parser(name, help=says)
        command.add_argument(
            "--json", action="store_true", help="as JSON (default: TOML)" if name != "check" else "as JSON"
        )
        command.set_defaults(run=handler)


def _load(options: argparse.Namespace) -> Config:
    return load(Path(options.config) if options.config else None)


def _show(options: argparse.Namespace) -> int:
    config = _load(options)
    _print(config, as_json=options.json)
    return 0


def _check(options: argparse.Namespace) -> int:
    config = _load(options)
    print(json.dumps({"files": list(config.files)}) if options.json else f"right: {config.describe_files()}")
    return 0


def _default(options: argparse.Namespace) -> int:
    _print(Config.default(), as_json=options.json)
    return 0


def _print(config: Config, *, as_json: bool) -> None:
    tables = tables_of(config)
    if as_json:
        print(json.dumps(tables, indent=2))
        return
    if config.files:
        print(f"# {config.describe_files()}")
    print(dump(tables), end="")


def tables_of(config: Config) -> dict[str, Any]:
    """The tables of configuration.toml; credentials are told as that they are there."""
    runtime = asdict(config.runtime)
    runtime["otlp_headers"] = dict.fromkeys(runtime["otlp_headers"], "(hidden)")
    tables = {
        "hypervisor": {"qemu": asdict(config.hypervisor)},
        "agent": {"kata": asdict(config.agent)},
        "runtime": runtime,
    }
    plain: dict[str, Any] = parse_json(json.dumps(tables))
    return plain
