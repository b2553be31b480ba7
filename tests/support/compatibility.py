"""The tables of docs/compatibility.md, made of what the code says: `python tests/support/compatibility.py --write`.

A test compares them; the words around them are the document's own.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from kata_runtime.oci.fields import rows

__all__ = ["DOCUMENT", "tables", "with_tables"]

DOCUMENT = Path(__file__).parents[2] / "docs/compatibility.md"


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    titles = list(head)
    return "\n".join([row(titles), "|" + "---|" * len(titles), *map(row, lines)])


def _fields() -> str:
    return _table(
        ("field", "here", "how, or why not"), ((f"`{path}`", rule.handling, rule.says) for path, rule in rows())
    )


def tables() -> Mapping[str, str]:
    """Each table by its name in the document."""
    return {"fields": _fields()}


def with_tables(text: str) -> str:
    """The document with the tables that there should be."""
    for name, table in tables().items():
        before, mark, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark, f"{DOCUMENT} has no place for the table {name}"
        assert end, f"the table {name} in {DOCUMENT} has no end"
        text = before + mark + table + "\n" + end + after
    return text


if __name__ == "__main__":
    made = with_tables(DOCUMENT.read_text())
    if "--write" in sys.argv:
        DOCUMENT.write_text(made)
    else:
        print(made)
