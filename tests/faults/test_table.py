"""Each row of the table of faults (support.faults.table), and the document that shows what came of it."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faults.document import DOCUMENT, document, record
from support.faults.scene import Scene, readable_by_all
from support.faults.table import ELSEWHERE, ROWS, Row
from support.kata import Kata

pytestmark = [pytest.mark.vm, pytest.mark.cold]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scene(kata: Kata) -> Iterator[Scene]:
    """Stand-ins where QEMU's user can read them. That nothing is left is looked at around each test (conftest)."""
    directory = readable_by_all(Path(tempfile.mkdtemp(prefix="kata-faults-")))
    yield Scene(kata, directory)
    shutil.rmtree(directory)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"[^a-zA-Z0-9]+", "-", row.name))
def test_a_fault_is_told(scene: Scene, row: Row) -> None:
    outcome = row.make(scene)
    assert outcome.status == row.status, outcome.said
    for part in row.says:
        assert part in outcome.said
    assert "Traceback" not in outcome.said
    assert outcome.seconds < row.within
    if path := os.environ.get("KATA_FAULTS_RECORD"):
        record(Path(path), row, outcome)


def test_what_is_tried_elsewhere_is() -> None:
    for row in ELSEWHERE:
        file, _, name = row.test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), row.test


def test_the_document_has_every_row() -> None:
    """Seconds are of a run that was recorded; rows and words are the table's."""
    assert DOCUMENT.read_text() == document(json.loads(DOCUMENT.with_name("faults.json").read_text()))
