"""Text that reaches a container byte for byte, or is refused.

A specification travels as JSON, so its text is UTF-8; execve(2) and mount(2) end a string at its first NUL byte. What
fits neither would arrive as something else.
"""

from collections.abc import Mapping, Sequence

from kata_runtime.errors import RootfsError

__all__ = ["check_environment", "check_text"]


def check_text(value: object, where: str) -> None:
    """Refuse strings in `value`, which `where` names, that a container would not get as they are.

    Raises:
        RootfsError: one is no UTF-8 or has a NUL byte; the message names it.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise RootfsError(f"{where} has a NUL byte: {_shown(value)}", hint="no argument of a program can have one")
        try:
            value.encode()
        except UnicodeEncodeError:
            hint = "specifications are JSON; give the bytes to the container in a file"
            raise RootfsError(f"{where} is no UTF-8: {_shown(value)}", hint=hint) from None
    elif isinstance(value, Mapping):
        for name, member in value.items():
            check_text(name, f"a name in {where or 'the whole'}")
            check_text(member, f"{where}.{name}" if where else str(name))
    elif isinstance(value, Sequence):
        for index, entry in enumerate(value):
            check_text(entry, f"{where}[{index}]")


def check_environment(entries: Sequence[str], where: str) -> None:
    """Refuse, as runc does, what is no `NAME=VALUE`.

    Raises:
        RootfsError: the message names the entry.
    """
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            raise RootfsError(f"{where}[{index}]: {_shown(entry)} is no variable", hint="write it as NAME=VALUE")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
