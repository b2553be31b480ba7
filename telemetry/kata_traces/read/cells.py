"""Text that others wrote, in the cells of a terminal."""

import unicodedata

from kata_common.text import printable

__all__ = ["columns", "crop", "crop_left", "headline", "printable", "wrap"]


def headline(text: str) -> str:
    """The first line of a message, printable; "" where there is none."""
    first, _, _ = text.strip().partition("\n")
    return printable(first.strip().rstrip(":"))


def columns(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def crop(text: str, width: int, more: str = "…") -> str:
    """At most `width` columns of `text`; `more` is the last of them where something is missing."""
    if columns(text) <= width:
        return text
    while columns(text) > width - 1:
        text = text[:-1]
    return text + more


def crop_left(text: str, width: int, more: str = "…") -> str:
    """At most `width` columns of the end of `text`: the end of a name or path says more than its beginning."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - columns(more):
        text = text[1:]
    return more + text


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; those that follow the first are indented as it is. Never empty."""
    indent = text[: len(text) - len(text.lstrip(" |"))]
    lines: list[str] = []
    line = ""
    for word in text[len(indent) :].split(" "):
        joined = f"{line} {word}" if line else indent + word
        if columns(joined) <= width or not line:
            line = joined
        else:
            lines.append(line)
            line = indent + word
        while columns(line) > max(width, len(indent) + 1):
            head = line
            while columns(head) > width and len(head) > 1:
                head = head[:-1]
            lines.append(head)
            line = indent + line[len(head) :]
    return [*lines, line]
