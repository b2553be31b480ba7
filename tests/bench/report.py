"""Figures as a document: a table, the same as JSON, and a picture."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

__all__ = ["Row", "table", "write"]

_HEAD = """\
# Performance

Made by `nox -s bench -- --all`, which measures all of this in one run, everything in turn with everything else, beside
a stock boot of the same kernel and runc under the same containerd. {rounds} rounds, medians; in brackets the least and
the most. {made}, commit {commit}, {machine}; load before it {load_before}, it took {minutes} minutes. No hardware
virtualization: guests are emulated (TCG). All samples: [performance.json](performance.json). What each figure is, and
the tests that hold limits: [limits.md](limits.md).

![figures and their targets](performance.svg)

"""
_WIDTH, _LEFT, _LINE = 960, 470, 26


class Row(NamedTuple):
    """A figure: the median of `mine`, ÷ that of `base` where there is one; `target` is the most that was asked for."""

    what: str
    mine: Sequence[float]
    base: Sequence[float] | None
    target: float | None
    unit: str = ""

    @property
    def figure(self) -> float:
        """What is compared with the target."""
        mine = statistics.median(self.mine)
        return mine / statistics.median(self.base) if self.base else mine

    @property
    def met(self) -> bool | None:
        """Whether it is; None where nobody has asked for anything."""
        return None if self.target is None else round(self.figure, 3) <= self.target


def write(directory: Path, told: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """performance.md, performance.json and performance.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = [
        {"what": row.what, "figure": round(row.figure, 4), "target": row.target, "unit": row.unit, "met": row.met}
        for row in rows
    ]
    (directory / "performance.json").write_text(json.dumps({**told, "figures": figures}, indent=1) + "\n")
    (directory / "performance.svg").write_text(picture(rows))
    (directory / "performance.md").write_text(_HEAD.format(**told) + table(rows))


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    lines = ["| | figure | target | met | medians |", "|---|---|---|---|---|"]
    for row in rows:
        target = "-" if row.target is None else f"≤ {row.target:g} {row.unit}".strip()
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(f"| {row.what} | {_number(row.figure)} {row.unit} | {target} | {met} | {_medians(row)} |")
    return "\n".join(lines) + "\n"


def _medians(row: Row) -> str:
    if row.base is None:
        return ""
    return " ÷ ".join(_spread(values) for values in (row.mine, row.base))


def _spread(values: Sequence[float]) -> str:
    factor, unit = (1, "s") if statistics.median(values) >= 1 else (1000, "ms")
    shown = [_number(value * factor) for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} {unit} ({shown[1]} to {shown[2]})" if len(values) > 1 else f"{_number(values[0])}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def picture(rows: Sequence[Row]) -> str:
    """Bars of what has a target, each to its target, which is the line."""
    shown = [row for row in rows if row.target]
    most = max(2.0, *(row.figure / row.target for row in shown if row.target))
    scale = (_WIDTH - _LEFT - 120) / most
    parts = []
    for number, row in enumerate(shown):
        assert row.target
        top = 40 + number * _LINE
        length = max(2.0, row.figure / row.target * scale)
        color = "#2e7d32" if row.met else "#c62828"
        told = f"{_number(row.figure)} of {row.target:g} {row.unit}".strip()
        parts += [
            f'<text x="{_LEFT - 10}" y="{top + 13}" text-anchor="end">{escape(row.what.replace("`", ""))}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="16" fill="{color}"/>',
            f'<text x="{_LEFT + length + 6:.1f}" y="{top + 13}">{told}</text>',
        ]
    height = 60 + len(shown) * _LINE
    line = _LEFT + scale
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif"'
        f' font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{line:.1f}" y="22" text-anchor="middle">target</text>{"".join(parts)}'
        f'<path d="M{line:.1f} 28V{height - 12}" stroke="black" stroke-dasharray="4 3"/></svg>\n'
    )
