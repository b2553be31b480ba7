"""docs/compatibility.md says what the code does."""

from support.compatibility import DOCUMENT, tables, with_tables


def test_the_tables_are_the_codes() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text) == text, "python tests/support/compatibility.py --write"


def test_every_row_says_what_happens() -> None:
    for name, table in tables().items():
        for row in table.splitlines()[2:]:
            cells = [cell.strip() for cell in row.strip("|").split(" | ")]
            assert cells[1] in ("applied", "refused", "noted"), (name, row)
            assert len(cells) == 3, row
            assert all(cells), row
