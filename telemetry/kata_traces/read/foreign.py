"""Traces that others wrote down, as lines of OTLP/JSON: Jaeger's JSON, and the Trace Event Format of Perfetto.

Both of our own views of these formats come back whole but for what the format rounds: Jaeger has microseconds.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from kata_common.documents import parse_json

__all__ = ["UnknownFormatError", "otlp_lines"]

# More than any file that a person looks at; who sends more means harm.
MAX_SPANS: Final = 200_000
KINDS: Final = {"server": 2, "client": 3, "producer": 4, "consumer": 5}
OUR_KEYS: Final = frozenset({"span_id", "parent_id", "service", "stage", "critical_path_us", "open", "error"})


class UnknownFormatError(ValueError):
    """A file that is neither OTLP/JSON, nor Jaeger's JSON, nor Perfetto's."""


def otlp_lines(content: bytes) -> list[str]:
    """What is in a file, as lines of OTLP/JSON. Raises UnknownFormatError."""
    head = content.lstrip()[:1]
    try:
        whole = parse_json(content) if head in (b"{", b"[") else None
    except (ValueError, RecursionError):
        whole = None
    try:
        if isinstance(whole, list) or (isinstance(whole, dict) and "traceEvents" in whole):
            return list(_perfetto(whole))
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            return list(_jaeger(whole["data"]))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UnknownFormatError(f"not what Jaeger or Perfetto write: {error!r}"[:300]) from error
    lines = content.decode("utf-8", "replace").splitlines() if whole is None else [json.dumps(whole)]
    if not any('"resourceSpans"' in line for line in lines):
        raise UnknownFormatError("neither lines of OTLP/JSON, nor Jaeger's JSON, nor Perfetto's Trace Event Format")
    return lines


def _request(service: str, spans: list[dict[str, Any]]) -> str:
    resource = {"attributes": [_pair("service.name", service)]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": spans}]}]})


def _pair(key: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": value if isinstance(value, str) else json.dumps(value)}}


def _pairs(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_pair(str(key), value) for key, value in content.items()]


def _moment(nanoseconds: int) -> str:
    """A time as OTLP/JSON has it, in 64 bits."""
    if not 0 <= nanoseconds < 1 << 64:
        raise ValueError("a time that is none")
    return str(nanoseconds)


def _by_service(spans: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    found: dict[str, list[dict[str, Any]]] = {}
    for number, (service, span) in enumerate(spans):
        if number >= MAX_SPANS:
            raise ValueError(f"more than {MAX_SPANS} spans")
        found.setdefault(service, []).append(span)
    for service, of_it in found.items():
        yield _request(service, of_it)


def _jaeger(traces: list[dict[str, Any]]) -> Iterator[str]:
    yield from _by_service(
        (str(trace["processes"].get(span.get("processID"), {}).get("serviceName", "unknown")), _from_jaeger(span))
        for trace in traces
        for span in trace["spans"]
    )


def _from_jaeger(span: Mapping[str, Any]) -> dict[str, Any]:
    tags = {str(tag["key"]): _tag_value(tag) for tag in span.get("tags") or []}
    parents = [r["spanID"] for r in span.get("references") or [] if r.get("refType") == "CHILD_OF"]
    failed = tags.pop("error", False) in (True, "true") or tags.get("otel.status_code") == "ERROR"
    tags.pop("otel.status_code", None)
    start = int(span["startTime"]) * 1000
    return {
        "traceId": str(span["traceID"]).zfill(32),
        "spanId": str(span["spanID"]).zfill(16),
        "parentSpanId": str(parents[0]).zfill(16) if parents else "",
        "name": str(span["operationName"]),
        "kind": KINDS.get(str(tags.pop("span.kind", "")), 1),
        "startTimeUnixNano": _moment(start),
        "endTimeUnixNano": _moment(start + max(int(span["duration"]), 0) * 1000 or 1),
        "status": {"code": 2, "message": str(tags.pop("otel.status_description", ""))} if failed else {},
        "attributes": _pairs(tags),
        "events": [_from_log(log) for log in span.get("logs") or []],
    }


def _from_log(log: Mapping[str, Any]) -> dict[str, Any]:
    fields = {str(tag["key"]): _tag_value(tag) for tag in log.get("fields") or []}
    name = fields.pop("event", None) or fields.get("message") or "log"
    return {"name": str(name), "timeUnixNano": _moment(int(log["timestamp"]) * 1000), "attributes": _pairs(fields)}


def _tag_value(tag: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    return int(tag["value"]) if tag.get("type") == "int64" else tag["value"]


def _perfetto(content: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    events = content if isinstance(content, list) else content["traceEvents"]
    other = content.get("otherData", {}) if isinstance(content, dict) else {}
    begin = int(other.get("begin_unix_ns", 0))
    trace_id = str(other.get("trace_id") or hashlib.sha256(json.dumps(events[:1000]).encode()).hexdigest()[:32])
    names = {
        (e["pid"], e["tid"]): str(e["args"]["name"])
        for e in events
        if e.get("ph") == "M" and e.get("name") == "thread_name"
    }
    slices = sorted((e for e in events if e.get("ph") == "X"), key=lambda e: (float(e["ts"]), -float(e.get("dur", 0))))
    if not slices:
        raise ValueError("no slice (ph X) is in it")
    # A trace has one root: the file's, under which lie the outermost slices of its threads.
    ours = all("span_id" in e.get("args", {}) for e in slices)
    spans: dict[str, dict[str, Any]] = {}
    services: dict[str, str] = {}
    going_on: dict[tuple[Any, Any], list[tuple[float, str]]] = {}
    for number, event in enumerate(slices):
        args = dict(event.get("args") or {})
        thread = (event["pid"], event["tid"])
        above = going_on.setdefault(thread, [])
        while above and above[-1][0] <= float(event["ts"]):
            above.pop()
        span_id = str(args["span_id"]) if ours else f"{number + 2:016x}"
        parent = str(args["parent_id"]) if ours else (above[-1][1] if above else f"{1:016x}")
        start = begin + round(float(event["ts"]) * 1000)
        end = start + round(float(event.get("dur", 0)) * 1000)
        above.append((float(event["ts"]) + float(event.get("dur", 0)), span_id))
        failed = "error" in args and ours
        kept = {k.removeprefix("attribute."): v for k, v in args.items() if not (ours and k in OUR_KEYS)}
        spans[span_id] = {
            "traceId": trace_id,
            "spanId": span_id,
            "parentSpanId": parent,
            "name": str(event["name"]),
            "startTimeUnixNano": _moment(start),
            "endTimeUnixNano": "0" if args.get("open") and ours else _moment(end or 1),
            "status": {"code": 2, "message": str(args["error"])} if failed else {},
            "attributes": _pairs(kept),
            "events": [],
        }
        services[span_id] = str(args.get("service") or event.get("cat") or "") or names.get(thread, "unknown")
        if not ours:
            services[span_id] = names.get(thread, f"thread {event['tid']}")
    if not ours:
        first = min(int(span["startTimeUnixNano"]) for span in spans.values())
        last = max(int(span["endTimeUnixNano"]) for span in spans.values())
        root = {"traceId": trace_id, "spanId": f"{1:016x}", "name": "trace", "attributes": []}
        spans[f"{1:016x}"] = {**root, "startTimeUnixNano": str(first), "endTimeUnixNano": str(last)}
        services[f"{1:016x}"] = "file"
    for event in events:
        span = spans.get(str((event.get("args") or {}).get("span_id")))
        if event.get("ph") == "i" and span is not None:
            details = {k: v for k, v in event["args"].items() if k != "span_id"}
            at = begin + round(float(event["ts"]) * 1000)
            span["events"].append(
                {"name": str(event["name"]), "timeUnixNano": _moment(at), "attributes": _pairs(details)}
            )
    yield from _by_service((services[span_id], span) for span_id, span in spans.items())
