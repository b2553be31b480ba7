"""`kata-runtime`: the command line. Commands import what they need when they run."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kata_common import descriptors
from kata_common.files import exists
from kata_common.text import printable, told
from kata_runtime.birth import is_prepared
from kata_runtime.complaint import LOGGER, complain
from kata_runtime.errors import HostError, KataError
from kata_telemetry import logs

__all__ = ["main", "whole_parser"]

_EPILOG = "`kata-runtime COMMAND --help` tells more about a command."


class _Parser(argparse.ArgumentParser):
    """A command line that can't be understood is an error of ours, too (docker's exit code for it)."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(**settings)
        # The command's own parser, in the end: that of the deepest command sets it last.
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(KataError.exit_code, f"{self.prog}: {message}\n")

    def unknown(self, word: str) -> NoReturn:
        """Fail because of a word that is none of ours, with the option that is nearest to it."""
        import difflib

        known = [name for action in self._actions for name in action.option_strings]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.5)
        shown = printable(word, 100)
        self.error(
            f"unknown option {shown}" + (f"; did you mean {near[0]}?" if near else "; --help tells those it has")
        )


class _Plain(logging.Formatter):
    """Records as a person reads them on a terminal; they may quote whoever is in a guest."""

    def format(self, record: logging.LogRecord) -> str:
        return told(super().format(record))


def whole_parser(*, alone: bool = False) -> argparse.ArgumentParser:
    """The whole command line, or `alone` the one that knows `run` alone."""
    from kata_runtime.engine.store import DEFAULT_ROOT

    parser: argparse.ArgumentParser = _Parser(
        prog="kata-runtime",
        description="Runs containers in virtual machines, and tells where their time goes.",
        epilog=_EPILOG,
    )
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: the first of the default paths)")
    parser.add_argument("--log", metavar="FILE", help="append the log to a file (default: warnings, to stderr)")
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="form of the log file (default: text, that is name=value)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=DEFAULT_ROOT,
        help=f"where engines' containers are known (default: {DEFAULT_ROOT})",
    )
    parser.add_argument(
        "--systemd-cgroup", action="store_true", help="accepted: containers' cgroups are in their guests"
    )
    parser.add_argument(
        "--show-default-config-paths", action="store_true", help="print where configuration is looked for, and exit"
    )
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_run(commands)
    if not alone:
        _add_others(commands)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from kata_runtime.cli import run

    run.add_arguments(commands.add_parser("run", help="run a command in a container in a new VM"))


def _add_others(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from kata_runtime.cli import check, control, direct_volume, factory, kept_images, metrics
    from kata_runtime.image import command as image
    from kata_traces.commands import main as trace

    check.add_arguments(commands.add_parser("check", help="say whether this host can run containers in VMs"))
    images = commands.add_parser(
        "image", help="build the guest's image; list and prune what run --image has unpacked"
    ).add_subparsers(required=True, metavar="COMMAND")
    build = images.add_parser("build", help="build it where its inputs have changed")
    image.add_arguments(build)
    build.set_defaults(run=lambda options: image.run(options, print))
    kept_images.add_arguments(images)
    direct_volume.add_arguments(
        commands.add_parser("direct-volume", help="volumes whose file system only a guest mounts")
    )
    factory.add_arguments(commands.add_parser("factory", help="guests that have booted before they are wanted"))
    control.add_arguments(trace.add_arguments(commands))
    metrics.add_arguments(commands.add_parser("metrics", help="figures of a sandbox, for Prometheus"))
    _add_containers(commands)
    commands.add_parser("version", help="print the version")


def _add_containers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Commands for what runs."""
    from kata_runtime.cli import configuration, console, environment, execute, guest, install, listing, output, stop
    from kata_runtime.engine import create, life, resources

    environment.add_arguments(commands.add_parser("env", help="print what containers would run with here"))
    configuration.add_arguments(commands.add_parser("config", help="print or check the configuration"))
    listing.add_arguments(commands)
    execute.add_arguments(commands.add_parser("exec", help="run one more command in a container"))
    console.add_arguments(commands.add_parser("console", help="be at a shell of the guest's own"))
    guest.add_iptables(commands.add_parser("iptables", help="print or set the firewall of a guest"))
    guest.add_policy(commands.add_parser("policy", help="say which calls a guest's agent answers"))
    output.add_arguments(commands.add_parser("logs", help="print what a sandbox of run -d wrote"))
    stop.add_arguments(commands.add_parser("stop", help="end sandboxes or containers"))
    create.add_arguments(commands.add_parser("create", help="create a container of an OCI bundle (for engines)"))
    life.add_arguments(commands)
    resources.add_arguments(commands)
    install.add_arguments(commands, whole_parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    descriptors.fill()
    given = sys.argv[1:] if arguments is None else list(arguments)
    status = _elsewhere(given)
    if status is not None:
        return status
    # What others need is not imported for a start.
    parser = whole_parser(alone=_past_config(given)[1][:1] == ["run"])
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.unknown(unknown[0])
    _configure_log(options)
    try:
        return _dispatch(parser, options)
    except KataError as error:
        return complain(error)
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except OSError as error:
        # Whatever was to be done then: the host lacks something, and that is no fault of ours to show the place of.
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT):
            raise
        return complain(HostError(str(error), hint="the host, or what limits this process, has no more of it"))


def _elsewhere(arguments: list[str]) -> int | None:
    """`run` by a process of the pool that is ready, before anything else is imported; its exit code.

    None where there is none, or where this is one.
    """
    path, rest = _past_config(arguments)
    if rest[:1] != ["run"] or is_prepared() or _detaches(rest):
        return None
    from kata_runtime.config import load

    try:
        factory = load(path).factory
    except KataError:
        return None  # whoever does it says what is wrong
    if not factory.vm_cache_number or not exists(factory.vm_cache_endpoint):
        return None
    from kata_runtime.birth import own_start
    from kata_runtime.pool.client import run_elsewhere

    return run_elsewhere(factory.vm_cache_endpoint, arguments, own_start())


def _detaches(words: list[str]) -> bool:
    """Whether `run` is to go on beside the terminal, as no process of the pool can."""
    options = words[: words.index("--")] if "--" in words else words
    return any(word == "--detach" or (word[:1] == "-" and word[:2] != "--" and "d" in word) for word in options)


def _past_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The configuration that comes first, and what follows."""
    if arguments[:1] == ["--config"] and len(arguments) > 2:
        return Path(arguments[1]), arguments[2:]
    return None, arguments


def _configure_log(options: argparse.Namespace) -> None:
    if options.log:
        try:
            logs.configure(
                "json" if options.log_format == "json" else "logfmt", "info", Path(options.log), source="runtime"
            )
        except OSError as error:
            print(told(f"kata-runtime: the log can't be written: {options.log}: {error.strerror}"), file=sys.stderr)
            raise SystemExit(KataError.exit_code) from error
        return
    # On a terminal a person reads: only what matters, in plain words.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("kata-runtime: %(levelname)s: %(message)s"))
    # What a guest says is for the log file: it must not speak to a person in our name.
    handler.addFilter(lambda record: record.name not in ("kata.agent", LOGGER))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _dispatch(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.show_default_config_paths:
        from kata_runtime.config import DEFAULT_PATHS

        print("\n".join(map(str, DEFAULT_PATHS)))
        return 0
    if options.version or options.command == "version":
        from importlib.metadata import version

        print(f"kata-runtime {version('kata-python')}")
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return 125
    if options.command in ("trace", "metrics"):
        return _trace(options)
    return int(options.run(options))


def _trace(options: argparse.Namespace) -> int:
    """Where traces are and go is in the configuration, unless the command line says otherwise."""
    from kata_runtime.config import load
    from kata_traces.send.settings import SettingsError
    from kata_traces.store.errors import StoreError

    if "sides" in options:  # of a running sandbox, which knows its own
        return int(options.run(options))
    runtime = load(Path(options.config) if options.config else None).runtime
    options.trace_dir = options.trace_dir or runtime.trace_dir
    if "given" in options:
        from kata_runtime.config.export import given

        options.given = given(runtime)
    try:
        return int(options.run(options))
    except (StoreError, SettingsError) as error:
        raise KataError(str(error)) from error
