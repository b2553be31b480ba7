"""Text that others wrote, in the cells of a terminal."""

import unicodedata

__all__ = ["columns", "crop", "headline", "printable"]


def printable(text: str) -> str:
    """Without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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
