"""Manual pages (man(7)) of command lines."""

import re
from collections.abc import Iterator

from kata_runtime.install.commands import Command, Option

__all__ = ["page", "pages"]

_FILES = (
    ("/etc/kata-containers/configuration.toml", "the configuration; config.d/*.toml beside it change single keys"),
    ("/var/lib/kata-containers/image", "kernel, initramfs and root file system of guests"),
    ("/var/lib/kata-containers/traces", "traces that are kept"),
    ("/run/kata", "a directory for each sandbox that lives"),
)


def pages(command: Command, section: int, version: str) -> dict[str, str]:
    """Name of the file and text: a page for the program, and one for each of its commands."""
    found = {f"{'-'.join(part.words)}.{section}": page(part, section, version) for part in command.commands}
    return {f"{command.name}.{section}": page(command, section, version)} | found


def page(command: Command, section: int, version: str) -> str:
    """The page of a command, with the commands below it."""
    title = "-".join(command.words)
    top = len(command.words) == 1
    lines = [
        f'.TH "{title.upper()}" "{section}" "" "kata-python {version}" "Kata Containers in Python"',
        ".SH NAME",
        f"{_text(title)} \\- {_text(command.help.rstrip('.'))}",
        ".SH SYNOPSIS",
        *_usage(command),
    ]
    if top and command.commands:
        lines += [".SH COMMANDS", *_listed((f"{title}-{c.name}({section})", c.help) for c in command.commands)]
        lines += _options(command, ".SH OPTIONS")
    else:
        lines += [*_options(command, ".SH OPTIONS"), *_below(command)]
    if command.epilog:
        lines += [".SH NOTES", _text(command.epilog)]
    if top:
        lines += [".SH FILES", *_listed(_FILES)]
    else:
        lines += [".SH SEE ALSO", f".BR {_text(command.words[0])} ({section})"]
    return "\n".join(lines) + "\n"


def _below(command: Command) -> Iterator[str]:
    for part in command.commands:
        yield f'.SH "{_text(" ".join(part.words[1:]).upper())}"'
        yield _text(f"{part.help[:1].upper()}{part.help[1:].rstrip('.')}.")
        yield ".P"
        yield from _usage(part)
        yield from _options(part, "")
        yield from _below(part)


def _usage(command: Command) -> Iterator[str]:
    program = " ".join(command.words)
    yield f".B {_text(program)}"
    yield _text(command.usage.removeprefix(program).strip()) or "\\&"


def _options(command: Command, heading: str) -> Iterator[str]:
    entries = [(_heading(option), option.help) for option in (*command.places, *command.options)]
    if entries:
        if heading:
            yield heading
        yield from _listed(entries)


def _heading(option: Option) -> str:
    return ", ".join(option.names) + (" " if option.names and option.value else "") + option.value


def _listed(
    entries: "Iterator[tuple[str, str]] | tuple[tuple[str, str], ...] | list[tuple[str, str]]",
) -> Iterator[str]:
    for name, says in entries:
        yield from (".TP", f"\\fB{_text(name)}\\fR", _text(says) or "\\&")


def _text(text: str) -> str:
    """As troff prints it: no line is a request, no dash a hyphen."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    line = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", line)
    return re.sub(r"^\.", r"\\&.", line)
