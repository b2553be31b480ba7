"""Durations and shares as people read them."""

import time

__all__ = ["attribute", "duration", "nanoseconds", "percent", "step"]

# Longer times than that are dates.
DAYS = 1000 * 86_400 * 10**9
# Unit, and ns in one of it.
FACTORS = {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9, "d": 86_400e9}
UNITS = (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000), ("ns", 1))


def duration(nanoseconds: int, *, tick: bool = False) -> str:
    """`1.25 s`, `48.1 ms`, `750 µs`, `3 min 12 s`: three digits, and as a tick of an axis no zeros behind the point."""
    if nanoseconds < 0:
        return f"-{duration(-nanoseconds, tick=tick)}"
    seconds = nanoseconds / 1e9
    # What would round to 100 s is none of the below.
    if seconds >= 99.95:
        return _long(round(seconds))
    unit, size = next(((unit, size) for unit, size in UNITS if nanoseconds >= size * 0.9995), ("s", 10**9))
    value = nanoseconds / size
    text = f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    if unit == "ns":
        text = f"{nanoseconds}"
    if tick or not nanoseconds:
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} {unit}"


def _long(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {seconds} s"


def attribute(key: str, value: object) -> str:
    """The value of an attribute; what is a time, by its name, as people read times."""
    if key.endswith("_ns") and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < DAYS:
            return duration(value)
        if abs(value) >= 2**63:
            return str(value)
        # An offset of a clock that began with the guest: the moment when that was.
        seconds, rest = divmod(value, 10**9)
        try:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{rest:09}"
        except (OverflowError, ValueError, OSError):
            return str(value)
    return str(value)


def percent(part: int, whole: int) -> str:
    """`1.3 %`; of nothing, `0.0 %`."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def nanoseconds(text: str, *, default: str = "ms") -> int:
    """`5ms`, `0.2s`, `800us`, `2h`, or a number of `default`, as ns; without a default it must have a unit.

    Raises ValueError.
    """
    number = text.strip().rstrip("nuµmshd ").strip()
    unit = text.strip()[len(number) :].strip() or default
    if not unit and number.replace(".", "", 1).isdecimal():
        raise ValueError(f"{text!r} has no unit: write {number}s or {number}ms")
    try:
        value = float(number) * FACTORS[unit]
        if not 0 <= value < 1e18:
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is no duration: write 5ms, 0.2s or 800us") from None
    return int(value)


def step(total: int, count: int) -> int:
    """A round number of ns that divides `total` into at most `count` parts."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if unit * factor * count >= total:
                return unit * factor
        unit *= 10
