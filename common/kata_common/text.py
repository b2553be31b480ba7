"""Text of others, made fit to be printed."""

__all__ = ["is_number", "printable", "told"]

_INDENT = "  "


def is_number(text: str, digits: int = 18) -> bool:
    """Whether it is a whole number of at most so many digits. `int` takes those of other scripts as well, and raises
    where there are thousands of them.
    """
    return len(text) <= digits and text.isascii() and text.isdecimal()


def printable(text: str, limit: int = 1000) -> str:
    r"""`text` with nothing that a terminal or a log would obey: such characters become `\x1b`, `\u202e` and the like.

    Whatever Python does not call printable (`str.isprintable`): control characters, marks that turn the direction of
    text or can't be seen, other separators than the blank, lone surrogates. What is longer than `limit` characters is
    cut and says by how much.
    """
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return f"{text}… ({cut} more characters)" if cut > 0 else text


def told(text: str, limit: int = 20_000) -> str:
    """A message of possibly several lines, printable; those after the first are indented.

    So whoever is quoted in a message can't begin a line that looks like another message of ours. It ends without an end
    of line.
    """
    cut = len(text) - limit
    first, *rest = text[:limit].rstrip().replace("\t", _INDENT).split("\n")
    lines = [first, *(line if line.startswith(_INDENT) else _INDENT + line for line in rest)]
    lines = [printable(line, len(line)) for line in lines]
    if cut > 0:
        lines.append(f"{_INDENT}… ({cut} more characters)")
    return "\n".join(lines)
