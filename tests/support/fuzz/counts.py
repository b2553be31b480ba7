"""What has been run and found so far, as docs/fuzzing.md shows it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from support.fuzz.findings import FINDINGS
from support.fuzz.table import TARGETS

__all__ = ["DOCUMENT", "Count", "add", "document", "render"]

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs/fuzzing.md"
COUNTS = ROOT / "tests/fuzz/counts.json"
_BEGIN, _END = "<!-- made by `nox -s fuzz -- --record` -->", "<!-- end -->"


class Count(NamedTuple):
    """Runs of a target under atheris, and the seconds that they took."""

    runs: int = 0
    seconds: int = 0


def counts() -> dict[str, Count]:
    """So far, by target."""
    known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    return {name: Count(*known.get(name, ())) for name in TARGETS}


def add(news: Mapping[str, Count]) -> None:
    """Count what has just been run."""
    total = {name: list(map(sum, zip(count, news.get(name, Count()), strict=True))) for name, count in counts().items()}
    COUNTS.write_text(json.dumps(total, indent=1) + "\n")


def tables() -> str:
    """The two tables of the document."""
    lines = ["| target | parser | its errors | runs | minutes | findings |", "|---|---|---|---:|---:|---:|"]
    known = counts()
    for name, target in TARGETS.items():
        errors = ", ".join(f"`{kind.__name__}`" for kind in target.allowed) or "none"
        number = sum(finding.target == name for finding in FINDINGS)
        minutes = f"{known[name].seconds / 60:.1f}"
        lines.append(f"| {name} | {target.function} | {errors} | {known[name].runs} | {minutes} | {number or ''} |")
    runs, seconds = (sum(values) for values in zip(*known.values(), strict=True))
    lines.append(f"| {len(TARGETS)} targets | | | {runs} | {seconds / 60:.0f} | {len(FINDINGS)} |")
    lines += ["", "| found by | what it was | what holds it now |", "|---|---|---|"]
    lines += [f"| {finding.target} | {finding.what} | {finding.mended} |" for finding in FINDINGS]
    return "\n".join(lines)


def document() -> str:
    """The document as it should be."""
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{tables()}\n\n{_END}{rest.partition(_END)[2]}"


def render() -> None:
    """Write it."""
    DOCUMENT.write_text(document())
