"""JSON of others: what can't be followed is no JSON, wherever it is read."""

import re
from pathlib import Path

import pytest

from kata_common.documents import parse_json

ROOT = Path(__file__).parents[3]


def test_what_is_too_deep_is_a_value_error() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    for content in (b"[" * 100_000, '{"a":' * 100_000, b"{", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(content)


def test_nobody_parses_json_elsewhere() -> None:
    """Each caller would have to know json's second error (RecursionError)."""
    sources = [path for name in ("runtime", "agent", "telemetry", "common") for path in (ROOT / name).rglob("*.py")]
    found = [str(path) for path in sources if re.search(r"\bjson\.loads?\(", path.read_text())]
    assert found == [str(ROOT / "common/kata_common/documents.py")]
