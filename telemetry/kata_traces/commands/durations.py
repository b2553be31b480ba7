"""Durations and other numbers as people give them on a command line."""

import argparse
from typing import Final

__all__ = ["parse_count", "parse_duration", "parse_percent", "parse_positive"]

# ns in one of each unit.
UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
}


def parse_duration(text: str, *, default: str = "ms") -> int:
    """`5ms`, `0.2s`, `800us`, `2h`, or a number of `default`, as ns; without a default it must have a unit.

    Raises argparse.ArgumentTypeError.
    """
    number = text.strip().rstrip("nuµmshd ").strip()
    unit = text.strip()[len(number) :].strip() or default
    if not unit and number.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: write {number}s or {number}ms")
    try:
        value = float(number) * UNITS[unit]
        if not 0 <= value < 1e18:
            raise ValueError
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 5ms, 0.2s or 800us") from None
    return int(value)


def parse_positive(text: str) -> int:
    """From 1 to 10000."""
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)


def parse_count(text: str) -> int:
    """From 0 to a billion."""
    if not text.isdecimal() or int(text) > 1_000_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def parse_percent(text: str) -> float:
    """`5`, `2.5` or `5%`."""
    try:
        value = float(text.strip().removesuffix("%"))
        if not 0 <= value <= 100:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write a number from 0 to 100") from None
    return value
