"""Traces that a view must survive: hostile texts, and spans in every odd place."""

from random import Random
from typing import Any

from hypothesis import strategies as st

from kata_traces.read.trace import Trace, load
from kata_traces.store.store import Meta
from support.traces import MS, SANDBOX, Maker, container_start

__all__ = ["HOSTILE", "hostile", "large", "trace_of", "traces"]

HOSTILE = (
    "</script><script>document.title = 'owned'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "';document.title='owned';//",
    "%%trace%% %%script%%",
    "\x1b[31mred\x07\x00",
    "right\u202eto\u2028left\ud800",
    "section evil :crit, 0, 1; click a href \"javascript:x\" %%{init: {'theme':'dark'}}%%",
    "&lt;b&gt; & \"quoted\" 'twice' \\u003c",
    "__proto__",
    "ünï© 汉字 🚀",
)


def trace_of(make: Maker, **meta: Any) -> Trace:
    """As a store of `make` would be read."""
    trace = load(make.lines(), meta=Meta(SANDBOX, root_id=f"{1:016x}", **meta))
    assert trace is not None
    return trace


def hostile() -> Maker:
    """Every text that a guest may choose is hostile once: names, keys, values, events, messages."""
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    for number, text in enumerate(HOSTILE):
        events = (
            (number + 1.5, text, {text: text, "level": text}),
            (number + 1.6, "log", {"level": "error", "msg": text}),
        )
        span = make.add(text, number + 1, number + 5, root, agent=True, error=text, events=events)
        make.spans[-1]["span"]["attributes"].append({"key": text, "value": {"stringValue": text}})
        make.add(text, number + 2, number + 3, span)
    return make


def large(count: int, seed: int = 1) -> Maker:
    """A container's start with more and more spans in it, `count` in all."""
    make, random = container_start(), Random(seed)
    spans = [(e["span"]["spanId"], e["span"]["startTimeUnixNano"], e["span"]["endTimeUnixNano"]) for e in make.spans]
    begin = int(spans[0][1])
    parents = [(span_id, (int(start) - begin) / MS, (int(end) - begin) / MS) for span_id, start, end in spans]
    while len(make.spans) < count:
        parent, start, end = random.choice(parents)
        first = start + (end - start) * random.random()
        last = first + (end - first) * random.random() ** 3
        number = len(make.spans)
        name = f"{random.choice(['read', 'write', 'mount', 'poll'])}{number % 40}"
        added = make.add(name, first, last, parent, agent=number % 2 == 0, path=f"/data/{number}", number=str(number))
        if number % 5 == 0:
            parents.append((added, first, last))
    return make


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Small trees with orphans, overlaps, negative durations and any names."""
    make = Maker()
    make.add("rootSpan", 0, draw(st.integers(0, 100)))
    for number in range(draw(st.integers(0, 12))):
        start = draw(st.integers(-20, 120))
        parent = draw(st.sampled_from([*(f"{n + 1:016x}" for n in range(number + 1)), "00000000000000ff"]))
        name = draw(st.sampled_from(["a", "qmp.b", "boot.kernel", "crun x", *HOSTILE]))
        make.add(name, start, start + draw(st.integers(-5, 60)), parent, agent=draw(st.booleans()))
    return trace_of(make)
