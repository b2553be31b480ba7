"""The shim's command line, as containerd writes it: Go's flags, then an action.

Flags and actions are from containerd docs/runtime-v2.md. Hand-made, because argparse would cost the process that
containerd waits for as much as all it has to do.
"""

__all__ = ["FLAGS", "Arguments", "UsageError", "parse"]

# Name, value ("": a switch), and what it is for: of --help and the manual.
FLAGS = (
    ("namespace", "NS", "containerd's namespace of the container"),
    ("id", "ID", "the container's id"),
    ("address", "SOCKET", "where containerd serves its API"),
    ("publish-binary", "FILE", "containerd's program, for events"),
    ("bundle", "DIR", "the container's bundle, for delete"),
    ("socket", "SOCKET", "accepted: nobody uses it with start"),
    ("debug-socket", "SOCKET", "accepted: nobody uses it with start"),
    ("debug", "", "a longer log"),
    ("info", "", "print what this runtime is (containerd.types.RuntimeInfo)"),
    ("v", "", "print the version"),
    ("h", "", "print this"),
)
_TEXTS = tuple(name for name, value, _ in FLAGS if value)
_SWITCHES = {"debug": "debug", "info": "info", "v": "version", "version": "version", "h": "help", "help": "help"}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
ACTIONS = ("start", "delete")


class UsageError(Exception):
    """The command line, or what came on stdin, can't be used."""


class Arguments:
    """What was said. A plain class: dataclasses would cost 8 ms of the start."""

    __slots__ = ("action", "address", "bundle", "debug", "help", "id", "info", "namespace", "publish_binary", "version")

    def __init__(self) -> None:
        self.action = ""
        self.namespace = ""
        self.id = ""
        self.address = ""
        self.publish_binary = ""
        self.bundle = ""
        self.debug = False
        self.info = False
        self.version = False
        self.help = False


def parse(argv: list[str]) -> Arguments:
    """Understand `argv` (without the program's name).

    Raises:
        UsageError: an unknown flag or action, a missing value, or an id that can't be one.
    """
    found = Arguments()
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in _SWITCHES:
            if equals and value not in _TRUE + _FALSE:
                raise UsageError(f"-{name} is a switch: true or false, not {value!r}")
            setattr(found, _SWITCHES[name], not equals or value in _TRUE)
        elif name in _TEXTS:
            if not equals:
                if not rest:
                    raise UsageError(f"-{name} needs a value")
                value = rest.pop(0)
            if name not in ("socket", "debug-socket"):  # named in containerd's table, never used with `start`
                setattr(found, name.replace("-", "_"), value)
        else:
            known = ", ".join(f"-{name}" for name in (*_TEXTS, *_SWITCHES))
            raise UsageError(f"unknown flag {word}; known are {known}")
    found.action = rest[0] if rest else ""
    if not (found.info or found.version or found.help):
        _check(found)
    return found


def _check(found: Arguments) -> None:
    if found.action not in ACTIONS:
        raise UsageError(f"the action is {found.action!r}, it must be one of: {', '.join(ACTIONS)}")
    for name, value in (("namespace", found.namespace), ("id", found.id)):
        if not value:
            raise UsageError(f"-{name} is missing")
        # Both become parts of paths, and `delete` removes what they name.
        if "/" in value or "\0" in value or value in (".", ".."):
            raise UsageError(f"-{name} {value!r} can't be a name of a directory")
