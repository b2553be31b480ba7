"""A comparison of runs as text and as JSON."""

from collections.abc import Iterator
from typing import Any, Final

from kata_traces.read.cells import crop, crop_left, printable
from kata_traces.read.compare import UNACCOUNTED, Comparison, Row
from kata_traces.read.units import duration, percent

__all__ = ["sentence", "text", "to_json"]

# Spans that are named in the text; JSON has all of them.
SHOWN: Final = 12
# Changes below are noise of measuring, ns.
NEGLIGIBLE: Final = 100_000
LABELS: Final = 4


def sentence(result: Comparison) -> str:
    """Which stage got slower, in words."""
    total = result.total
    change = total.change
    after, before = ("median", "median") if len(result.baseline) + len(result.candidate) > 2 else ("total", "total")
    if abs(change) <= max(NEGLIGIBLE, total.before_p50 // 1000):
        return f"No difference: {duration(total.after_p50)} against {duration(total.before_p50)}."
    word = "slower" if change > 0 else "faster"
    share = percent(abs(change), total.before_p50)
    text = (
        f"{share} {word}: {after} {duration(total.after_p50)} against {before} {duration(total.before_p50)}, "
        f"{_signed(change)}."
        if after == "median"
        else f"{share} {word}: {duration(total.after_p50)} against {duration(total.before_p50)}, {_signed(change)}."
    )
    # Of what went the same way as the whole, the largest.
    stage = next((row for row in result.stages if row.change * change > 0), None)
    if stage is not None:
        span = result.blamed.get(stage.name[0])
        name = "the unaccounted time" if stage.name == (UNACCOUNTED,) else f"stage {stage.name[0]}"
        text += f" Mostly {name} ({_signed(stage.change)})"
        if span is not None:
            text += f", in {printable(span.name[-1])} ({_signed(span.change)} on the critical path)"
        text += "."
    against = next((row for row in result.stages if row.change * change < 0), None)
    if against is not None and stage is not None and abs(against.change) * 10 > abs(stage.change):
        text += f" Against that, stage {against.name[0]} got {_opposite(word)} ({_signed(against.change)})."
    if not result.clear:
        text += f" That is within what the {len(result.baseline)} runs of the baseline vary by."
    return text


def text(result: Comparison, width: int) -> Iterator[str]:
    """Lines, none wider than `width` (80 at least)."""
    width = max(width, 80)
    yield crop(f"baseline:  {_labels(result.baseline)}", width)
    yield crop(f"candidate: {_labels(result.candidate)}", width)
    yield ""
    yield from _wrap(sentence(result), width)
    yield ""
    yield from _table("STAGE", [*((row, row.name[0]) for row in result.stages), (result.total, "total")], width)
    parts = sum(row.change for row in result.stages)
    if abs(parts - result.total.change) > max(NEGLIGIBLE, abs(result.total.change) // 10):
        yield from _wrap(
            f"The stages add up to {_signed(parts)}, not to the total: medians do not add up where runs are slow in "
            "different stages.",
            width,
        )
    changed = [row for row in result.spans if row.change or row.duration_change]
    if changed:
        yield ""
        shown = changed[:SHOWN]
        yield from _table("SPAN (by what it added to the critical path)", [(row, _tail(row)) for row in shown], width)
        if len(changed) > SHOWN:
            yield f"and {len(changed) - SHOWN} more, all of them with --format json"


def to_json(result: Comparison) -> dict[str, Any]:
    """All figures, ns."""
    return {
        "baseline": result.baseline,
        "candidate": result.candidate,
        "sentence": sentence(result),
        "clear": result.clear,
        "total": _figures(result.total),
        "stages": [{"stage": row.name[0], **_figures(row)} for row in result.stages],
        "spans": [{"path": list(row.name), **_figures(row)} for row in result.spans],
    }


def _figures(row: Row) -> dict[str, Any]:
    return {
        "baseline_p50_ns": row.before_p50,
        "baseline_p95_ns": row.before_p95,
        "candidate_p50_ns": row.after_p50,
        "candidate_p95_ns": row.after_p95,
        "contribution_ns": row.change,
        "duration_change_ns": row.duration_change,
        "in_runs": [row.runs_before, row.runs_after],
    }


def _table(title: str, rows: list[tuple[Row, str]], width: int) -> Iterator[str]:
    figures = 5 * 11
    yield f"{title:{width - figures}}" + "".join(f"{head:>11}" for head in ("p50", "p95", "→ p50", "p95", "adds"))
    for row, name in rows:
        before = [duration(row.before_p50), duration(row.before_p95)] if row.runs_before else ["-", "-"]
        after = [duration(row.after_p50), duration(row.after_p95)] if row.runs_after else ["-", "-"]
        label = crop_left(printable(name), width - figures - 1)
        cells = [*before, *after, _signed(row.change)]
        yield f"{label:{width - figures}}" + "".join(f"{cell:>11}" for cell in cells)


def _tail(row: Row) -> str:
    """The end of a path says more than its beginning, which the table crops."""
    return " › ".join(row.name[-4:])  # noqa: RUF001 - reads better than >


def _labels(labels: list[str]) -> str:
    shown = ", ".join(printable(label) for label in labels[:LABELS])
    more = f" and {len(labels) - LABELS} more" if len(labels) > LABELS else ""
    return f"{shown}{more} ({len(labels)} {'runs' if len(labels) > 1 else 'run'})"


def _opposite(word: str) -> str:
    return "faster" if word == "slower" else "slower"


def _signed(nanoseconds: int) -> str:
    return ("+" if nanoseconds > 0 else "") + duration(nanoseconds)


def _wrap(content: str, width: int) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(content, width)
