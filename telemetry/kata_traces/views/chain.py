"""`trace blame` and `trace critical-chain`: lines as systemd-analyze prints them."""

from collections.abc import Iterator
from typing import Final

from kata_traces.read.cells import columns, crop, crop_left, printable
from kata_traces.read.chain import blame, chain
from kata_traces.read.trace import Trace
from kata_traces.read.units import duration, percent

__all__ = ["blame_lines", "chain_lines"]

# Of the whole: shorter links are left out unless all are asked for.
NOTABLE: Final = 0.01


def blame_lines(trace: Trace, width: int, *, limit: int = 0) -> Iterator[str]:
    """The names that the trace waited for, the longest first."""
    found = blame(trace)
    total = max(trace.root.duration, 1)
    shown = found[:limit] if limit else found
    for item in shown:
        times = f" ({item.count} times)" if item.count > 1 else ""
        name = printable(item.span.name) + times
        room = max(width - 30, 20)
        left = crop_left(name, room)
        figures = f"{duration(item.waited):>9} {percent(item.waited, total):>7}"
        yield f"{figures} {left}{' ' * (room - columns(left))} {item.span.lane.value}"
    if len(found) > len(shown):
        rest = sum(item.waited for item in found[len(shown) :])
        yield f"{duration(rest):>9} {percent(rest, total):>7} in {len(found) - len(shown)} more"


def chain_lines(trace: Trace, width: int, *, everything: bool = False, plain: bool = False) -> Iterator[str]:
    """The tree of what the end waited for."""
    yield 'The time at which a span began is printed after "@".'
    yield 'The time that the end of the trace waited for it, its children included, is printed after "+".'
    yield ""
    corner, tee, pipe = ("`-", "|-", "| ") if plain else ("└─", "├─", "│ ")
    least = 0 if everything else int(trace.root.duration * NOTABLE)
    branches: list[bool] = []
    for link in chain(trace, least):
        del branches[link.depth :]
        tree = "".join("  " if last else pipe for last in branches[1:])
        tree += (corner if link.last else tee) if link.depth else ""
        branches.append(link.last)
        alone = f", alone {duration(link.own)}" if link.own and link.own != link.waited else ""
        times = f" @{duration(link.span.start - trace.root.start)} +{duration(link.waited)}{alone}"
        room = max(width - columns(times) - columns(tree), 16)
        yield crop(f"{tree[-(width // 2) :]}{crop_left(printable(link.span.name), room)}{times}", width)
