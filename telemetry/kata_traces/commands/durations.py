"""Durations and other numbers as people give them on a command line."""

import argparse

from kata_traces.read.units import nanoseconds

__all__ = ["parse_count", "parse_duration", "parse_percent", "parse_positive"]


def parse_duration(text: str, *, default: str = "ms") -> int:
    """See kata_traces.read.units.nanoseconds. Raises argparse.ArgumentTypeError."""
    try:
        return nanoseconds(text, default=default)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
