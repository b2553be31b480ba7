"""A trace as one HTML file to look at: no network, no other file, nothing that a trace could make run.

The page is `page/page.html` with the head, the style sheet and the scripts of that directory. A Content-Security-Policy
names each by its hash, so nothing else runs or is fetched. The trace is JSON in an inert block; the scripts put what
comes from it into the page as text only.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final, NamedTuple

from kata_common.contract import AGENT_SERVICE as AGENT
from kata_common.documents import parse_json
from kata_traces.read.advice import advice
from kata_traces.read.analysis import critical_path, split
from kata_traces.read.failure import failure_of
from kata_traces.read.remarks import remarks
from kata_traces.read.stages import Lane, Stage
from kata_traces.read.trace import Trace, TraceSpan
from kata_traces.views.values import portable

__all__ = ["SCRIPTS", "Page", "embedded", "page", "render", "site", "to_page_model"]

# One function around all of them; each may use what stands in those before it.
SCRIPTS: Final = (
    *("units", "model", "query", "overview", "waterfall", "details", "tables", "flame", "events", "app", "begin"),
)
# What `trace serve` adds, and the scripts of its list.
SERVED: Final = ("served",)
SITE: Final = ("units", "chart", "comparison", "site")
# In `flags` of a span.
OPEN: Final = 1
FAILED: Final = 2


class Page(NamedTuple):
    """A page, and the Content-Security-Policy that is in it, for a server's header."""

    text: str
    policy: str


def render(trace: Trace) -> str:
    """The whole file."""
    return page(trace).text


def page(trace: Trace, *, served: str = "") -> Page:
    """The page of a trace. `served` is what `trace serve` calls it: it leads back to the list then, and follows it."""
    meta = trace.meta
    title = " ".join(part for part in ("Trace of", meta.sandbox_id or trace.trace_id, meta.name, meta.command) if part)
    parts = {"trace": _embed(trace), "served": html.escape(served, quote=True)}
    scripts = (*SCRIPTS[:-1], *(SERVED if served else ()), SCRIPTS[-1])
    return _assemble("page", title, ("page",), scripts, parts, online=bool(served))


def site() -> Page:
    """The list of traces that `trace serve` shows first; what is in it comes from the server."""
    return _assemble("site", "Traces of Kata Containers", ("page", "site"), SITE, {}, online=True)


def _assemble(
    name: str, title: str, styles: Sequence[str], scripts: Sequence[str], parts: Mapping[str, str], *, online: bool
) -> Page:
    directory = resources.files("kata_traces.views") / "page"
    style = "\n".join((directory / f"{part}.css").read_text("utf-8") for part in styles)
    code = "\n".join((directory / f"{part}.js").read_text("utf-8") for part in scripts)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    connect = "'self'" if online else "'none'"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    head, body = ((directory / f"{part}.html").read_text("utf-8") for part in ("head", name))
    parts = {**parts, "head": _fill(head, {"policy": policy, "title": html.escape(title), "style": style})}
    return Page(_fill(body, {"script": script, **parts}), policy)


def embedded(page: str) -> dict[str, Any]:
    """The trace in a page that `render` made."""
    _, _, rest = page.partition('<script type="application/json" id="trace">')
    content: dict[str, Any] = parse_json(rest.partition("</script>")[0])
    return content


def _fill(template: str, parts: Mapping[str, str]) -> str:
    # Piece by piece, never by replacing in what is already filled in: a trace may contain the name of a slot.
    pieces = template.split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embed(trace: Trace) -> str:
    """JSON that ends no script element and begins no comment, whatever it contains; all of it ASCII."""
    content = json.dumps(to_page_model(trace), separators=(",", ":"), allow_nan=False)
    return content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def to_page_model(trace: Trace) -> dict[str, Any]:
    """What the scripts read: as `views.model`, in less space.

    Times are ns after `begin`, which is a text because JavaScript's numbers don't hold it. Names, keys and values are
    indices into `values`; `spans` are rows in the order of the tree, and refer to each other by their index.
    """
    begin = min(span.start for span in trace.spans)
    parts = split(trace)
    values = _Table()
    order = {span.span_id: index for index, span in enumerate(trace.walk())}
    meta = trace.meta
    return {
        "begin": str(begin),
        "end": max(max(span.end for span in trace.spans) - begin, 1),
        "trace_id": trace.trace_id,
        "sandbox": meta.sandbox_id,
        "name": meta.name,
        "command": meta.command,
        "outcome": meta.outcome,
        "live": trace.live,
        "lanes": list(Lane),
        "stages": list(Stage),
        "slices": [
            [list(Stage).index(piece.stage) if piece.stage else -1, piece.start - begin, piece.end - begin]
            for piece in parts.slices
        ],
        "critical": [
            [order[segment.span.span_id], segment.start - begin, segment.end - begin]
            for segment in critical_path(trace.root)
        ],
        "clock": _clock(trace, begin),
        "failure": _failure(trace, order),
        "remarks": list(remarks(trace)),
        "advice": list(advice(trace)),
        "misfits": [[order[found.span.span_id], found.before, found.after] for found in trace.misfits()],
        "spans": [_row(span, begin, order, values) for span in trace.walk()],
        "values": values.content,
    }


class _Table:
    """Values, each once."""

    def __init__(self) -> None:
        self.content: list[str | bool | int | float] = []
        self._index: dict[tuple[type, str | bool | int | float], int] = {}

    def add(self, value: object) -> int:
        plain = portable(value)
        # 1, 1.0 and True are equal, and different here.
        key = (type(plain), plain)
        if key not in self._index:
            self._index[key] = len(self.content)
            self.content.append(plain)
        return self._index[key]

    def pairs(self, attributes: Mapping[str, Any]) -> list[int]:
        return [index for key, value in attributes.items() for index in (self.add(key), self.add(value))]


def _row(span: TraceSpan, begin: int, order: Mapping[str, int], values: _Table) -> list[Any]:
    """In the order of the names in page/model.js."""
    stage = span.rule.stage
    return [
        span.span_id,
        order[span.parent.span_id] if span.parent else -1,
        values.add(span.name),
        values.add(span.service),
        list(Lane).index(span.lane),
        list(Stage).index(stage) if stage else -1,
        span.depth,
        span.start - begin,
        span.duration,
        span.self_time,
        OPEN * span.open + FAILED * span.failed,
        span.kind,
        values.add(span.message),
        values.pairs(span.attributes),
        [[values.add(event.name), event.time - begin, values.pairs(event.attributes)] for event in span.events],
        span.dropped_events,
        # Of an orphan: the parent that is not here.
        "" if span.parent else span.parent_id,
    ]


def _failure(trace: Trace, order: Mapping[str, int]) -> dict[str, Any] | None:
    """Why it failed, in the words of the runtime, and the span that is to blame."""
    found = failure_of(trace)
    return None if found is None else {"span": order[found.span.span_id], "lines": list(found.lines())}


def _clock(trace: Trace, begin: int) -> dict[str, Any] | None:
    """The guest's clock as the runtime measured it (kata_runtime.guest.clock), or None where it did not.

    Guest's CLOCK_MONOTONIC = host time - offset. Several measurements: each holds from its own time on, and the first
    also before.
    """
    found = []
    for span in trace.spans:
        # Only the runtime measures; what the agent says of its own clock proves nothing.
        if span.name == "clockSync" and span.service != AGENT:
            offset, bound = _integer(span, "offset_ns"), _integer(span, "bound_ns")
            if offset is not None and bound is not None:
                wall = _integer(span, "wall_error_ns")
                found.append({"at": span.end - begin, "offset": str(offset), "bound": bound, "wall": wall})
    guest = [span.span_id for span in trace.spans if span.service == AGENT]
    if not found:
        return None
    return {"readings": sorted(found, key=lambda reading: reading["at"]), "service": AGENT, "spans": len(guest)}


def _integer(span: TraceSpan, name: str) -> int | None:
    value = span.attributes.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
