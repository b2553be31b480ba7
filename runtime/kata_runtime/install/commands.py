"""What a command line has, read off its parser: manuals and completions are made from that, as --help is."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Command", "Option", "Values", "read"]


class Values(StrEnum):
    """What may stand where a value is expected, as far as a shell can help."""

    NONE = "none"
    FILES = "files"
    SANDBOXES = "sandboxes"
    OTHER = "other"


# By the name that --help shows for the value.
_FILES = ("FILE", "DIR", "PATH", "OCI-LAYOUT-OR-TAR", "IMAGE", "SRC:DST[:ro", "BUNDLE", "SRC", "DST")
_SANDBOXES = ("SANDBOX", "CONTAINER")


@dataclass(frozen=True)
class Option:
    """An option, or (without names) what stands by its place."""

    names: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> Values:
        """What its value may be."""
        if not self.value:
            return Values.NONE
        word = self.value.split()[0].removeprefix("[").removesuffix("...").removesuffix("]")
        if word in _FILES:
            return Values.FILES
        return Values.SANDBOXES if word.startswith(_SANDBOXES) else Values.OTHER


@dataclass(frozen=True)
class Command:
    """A command with its own commands; `words` are the program and the names that lead to it."""

    words: tuple[str, ...]
    help: str
    usage: str
    epilog: str = ""
    options: tuple[Option, ...] = ()
    places: tuple[Option, ...] = ()
    commands: tuple["Command", ...] = field(default=())

    @property
    def name(self) -> str:
        """The last word."""
        return self.words[-1]

    def all(self) -> Iterator["Command"]:
        """It and everything below it."""
        yield self
        for command in self.commands:
            yield from command.all()


def read(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), says: str = "") -> Command:
    """The command line of `parser`."""
    words = words or (parser.prog,)
    formatter = parser._get_formatter()
    options, places = [], []
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += [read(below, (*words, name), told.get(name, "")) for name, below in action.choices.items()]
            continue
        choices = tuple(map(str, action.choices or ()))
        text = formatter._expand_help(action) if action.help else ""
        if action.option_strings:
            options.append(Option(tuple(action.option_strings), _value(action), text, choices))
        else:
            places.append(Option((), str(action.metavar or action.dest), text, choices))
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    return Command(
        words, parser.description or says, usage, parser.epilog or "", tuple(options), tuple(places), tuple(commands)
    )


def _value(action: argparse.Action) -> str:
    """As --help shows it; "" for a switch."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
