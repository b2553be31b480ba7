"""Inputs that are worth keeping: tests/fuzz/corpus/TARGET.txt, one literal of bytes in each line.

Text, so that a change of them can be read. What made a parser fail stays in `found.txt`'s place: with a comment above.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CORPUS", "keep", "kept"]

CORPUS = Path(__file__).parents[2] / "fuzz/corpus"


def kept(name: str) -> list[bytes]:
    """The inputs kept for a target."""
    path = CORPUS / f"{name}.txt"
    if not path.exists():
        return []
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return [ast.literal_eval(line) for line in lines]


def keep(name: str, inputs: Iterable[bytes]) -> int:
    """Add inputs that are not there yet; how many."""
    known = set(kept(name))
    news = [data for data in dict.fromkeys(inputs) if data not in known]
    if news:
        with (CORPUS / f"{name}.txt").open("a") as file:
            file.writelines(f"{data!r}\n" for data in news)
    return len(news)
