"""What the search box of the list means: conditions that must all hold.

Words are looked for in names, attributes, events and messages of a trace; `name:`, `id:`, `pod:`, `image:`, `command:`
and `state:` in that (`state:failed` is all that did not end well); `key=value` in one attribute; `>5s`, `<1s` compare
the duration, `kernel>1s` and `boot.kernel>1s` a stage of the start and the longest span of a name; `since:2h`,
`since:2026-11-27`, `until:…`; a minus in front turns a condition round, quotation marks keep words together.
"""

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from kata_traces.read.stages import Stage
from kata_traces.read.units import nanoseconds
from kata_traces.views.serve.index import Summary, failed

__all__ = ["Test", "parse"]

Test = Callable[[Summary], bool]
FIELDS: Final = ("id", "name", "pod", "image", "command", "state")
_WORD = re.compile(r'(-?)((?:[^\s"]|"[^"]*"?)+)')
_COMPARED = re.compile(r"(.*?)([<>])=?(.+)")


def parse(text: str) -> Test:
    """The test; what can't be understood (yet: it is being typed) takes everything."""
    tests: list[Test] = []
    for minus, word in _WORD.findall(text[:1000]):
        test = _condition(word.replace('"', "").lower())
        if test is not None:
            tests.append(_not(test) if minus else test)
    return lambda summary: all(test(summary) for test in tests)


def _not(test: Test) -> Test:
    return lambda summary: not test(summary)


def _condition(word: str) -> Test | None:
    field, colon, value = word.partition(":")
    if colon and field in ("since", "until"):
        moment = _moment(value)
        if moment is None:
            return None
        return (lambda s: s.start >= moment) if field == "since" else (lambda s: s.start <= moment)
    if colon and field == "state" and value == "failed":
        return failed
    if colon and field in FIELDS:
        return lambda summary: value in str(getattr(summary, field)).lower()
    if compared := _COMPARED.fullmatch(word):
        return _comparison(*compared.groups())
    # One sign alone is still being typed.
    return (lambda summary: word in summary.text) if word.strip("<>=") else None


def _comparison(what: str, sign: str, limit: str) -> Test | None:
    try:
        bound = nanoseconds(limit)
    except ValueError:
        return None

    stage = next((stage.value for stage in Stage if stage.value.lower() == what.replace("_", " ")), "")

    def measured(summary: Summary) -> int | None:
        if not what:
            return summary.duration
        return summary.stages.get(stage) if stage else summary.slowest.get(what)

    def test(summary: Summary) -> bool:
        value = measured(summary)
        return value is not None and (value >= bound if sign == ">" else value <= bound)

    return test


def _moment(text: str) -> int | None:
    try:
        return int(datetime.fromisoformat(text.upper()).timestamp() * 1e9)
    except ValueError:
        pass
    try:
        return time.time_ns() - nanoseconds(text, default="")
    except ValueError:
        return None
