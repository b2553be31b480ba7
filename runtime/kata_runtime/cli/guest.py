"""`kata-runtime iptables` and `policy`: of a running sandbox's guest, by its management socket. Options are Kata's."""

import argparse
import sys
from pathlib import Path

from kata_common.text import told
from kata_runtime.cli.control import ask, chosen
from kata_runtime.config.policy import policy_text
from kata_runtime.errors import ConfigError, HostError

__all__ = ["add_iptables", "add_policy"]


def add_iptables(parser: argparse.ArgumentParser) -> None:
    """The commands of `iptables`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    get = commands.add_parser("get", help="print the guest's rules, as iptables-save does")
    put = commands.add_parser("set", help="put rules in their place, as iptables-restore does")
    for command in (get, put):
        command.add_argument("--sandbox-id", metavar="ID", default="", help="sandbox id (default: the only one)")
        command.add_argument("--v6", action="store_true", help="those of IPv6")
    put.add_argument("file", metavar="FILE", help="the rules; - is stdin")
    get.set_defaults(run=_get)
    put.set_defaults(run=_set)


def add_policy(parser: argparse.ArgumentParser) -> None:
    """The commands of `policy`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    put = commands.add_parser("set", help="have a guest's agent answer only what a policy allows")
    put.add_argument("--sandbox-id", metavar="ID", default="", help="sandbox id (default: the only one)")
    put.add_argument("file", metavar="FILE", help="the policy (docs/security.md); - is stdin")
    put.set_defaults(run=_set_policy)


def _path(options: argparse.Namespace) -> str:
    return "/ip6tables" if options.v6 else "/iptables"


def _get(options: argparse.Namespace) -> int:
    _say(ask(chosen(options.sandbox_id), "GET", _path(options)))
    return 0


def _set(options: argparse.Namespace) -> int:
    _say(ask(chosen(options.sandbox_id), "PUT", _path(options), body=_read(options.file)))
    return 0


def _set_policy(options: argparse.Namespace) -> int:
    try:
        text = policy_text(_read(options.file).decode(errors="replace"))
    except ValueError as error:
        raise ConfigError(f"{options.file}: expected {error}") from None
    ask(chosen(options.sandbox_id), "PUT", "/policy", body=text.encode())
    return 0


def _say(data: bytes) -> None:
    """The guest's words, line by line."""
    for line in data.decode(errors="replace").splitlines():
        print(told(line))


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise HostError(f"{name} can't be read: {error.strerror}") from error
