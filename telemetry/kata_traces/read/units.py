"""Durations and shares as people read them."""

__all__ = ["duration", "percent"]

# Unit, and ns in one of it.
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


def percent(part: int, whole: int) -> str:
    """`1.3 %`; of nothing, `0.0 %`."""
    return f"{100 * part / whole if whole else 0:.1f} %"
