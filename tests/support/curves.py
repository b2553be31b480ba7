"""Curves of a soak as SVG: one small chart for each figure, from zero on, with its first and last value."""

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["curves"]

WIDTH, HEIGHT, GAP, LEFT = 340, 90, 46, 24
UNITS = {"seconds": "s for a cycle", "memory": "MiB of shim and helpers", "guest": "MiB used in the guest"}


def curves(title: str, samples: Sequence[Mapping[str, float]]) -> str:
    """The picture; every member of a sample but `cycle` is a curve."""
    names = [name for name in samples[0] if name != "cycle"]
    height = 40 + (len(names) + 1) // 2 * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + LEFT) + LEFT} {height}">',
        "<style>text { font: 12px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    for number, name in enumerate(names):
        left, top = LEFT + number % 2 * (WIDTH + LEFT), 58 + number // 2 * (HEIGHT + GAP)
        parts += _chart(UNITS.get(name, name), [sample[name] for sample in samples], left, top)
    return "\n".join([*parts, "</svg>\n"])


def _chart(name: str, values: Sequence[float], left: int, top: int) -> list[str]:
    most = max(values) or 1
    step = WIDTH / max(len(values) - 1, 1)
    points = " ".join(f"{left + n * step:.1f},{top + HEIGHT * (1 - v / most):.1f}" for n, v in enumerate(values))
    label = f"{name}: {values[0]:g} … {values[-1]:.4g}"
    return [
        f'<text x="{left}" y="{top - 6}">{escape(label)}</text>',
        f'<path d="M{left} {top}V{top + HEIGHT}H{left + WIDTH}" fill="none" stroke="#999"/>',
        f'<polyline points="{points}" fill="none" stroke="#1a6" stroke-width="1.5"/>',
    ]
