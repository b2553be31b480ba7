"""Text of others, made fit to be printed."""

__all__ = ["printable"]


def printable(text: str, limit: int = 1000, *, lines: bool = False) -> str:
    r"""`text` with nothing that a terminal or a log would obey: such characters become `\x1b`, `\u202e` and the like.

    Whatever Python does not call printable (`str.isprintable`): control characters, marks that turn the direction of
    text or can't be seen, other separators than the blank, lone surrogates. With `lines`, ends of lines and tabs stay.
    What is longer than `limit` characters is cut and says by how much.
    """
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():
        kept = "\n\t" if lines else ""
        text = "".join(char if char.isprintable() or char in kept else _escaped(char) for char in text)
    return f"{text}… ({cut} more characters)" if cut > 0 else text


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii") if char != "\\" else char
