"""Closes the store of a sandbox whose runtime was killed: what was going on ends there, with the error on it.

Whoever comes first does it: the exporter, which sees the runtime end; containerd's `delete`; the next run's clean-up;
or the next reader. Afterwards the trace has a root and no open span, so that a collector can have all of it.
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from kata_common.documents import parse_json
from kata_common.files import Lock
from kata_traces.store.store import Store, write_meta

__all__ = ["CUT_OFF", "HEARTBEAT", "KILLED", "close_abandoned", "last_sign"]

# The outcome of such a trace, and what its spans say that were going on.
KILLED: Final = "killed"
CUT_OFF: Final = "cut off: the runtime was killed"
# A writer shows that it lives by its lock's time, at least this often (ns): so it is known when it was killed.
HEARTBEAT: Final = 1_000_000_000


def last_sign(store: Store) -> int:
    """When a writer of `store` last showed that it lived (host time, ns); 0 where none did."""
    try:
        return store.lock_path.stat().st_mtime_ns
    except OSError:
        return 0


def close_abandoned(store: Store, *, at: int = 0, patience: float = 0.0) -> bool:
    """Close `store` if its writer has died; whether it had. `at` (host time, ns) is when, if that is known.

    A writer that is just dying is waited for, `patience` seconds at most. Never raises: where it can't be written it
    stays as it is, and is shown as it is.
    """
    if not store.lock_path.exists() or store.meta().outcome:
        return False
    if store.live and not (patience and Lock.await_free(store.lock_path, patience)):
        return False
    lock = Lock(store.lock_path)
    try:
        if not lock.acquire():
            return False
        if store.meta().outcome:
            return False  # somebody else was faster
        _close(store, at)
    except OSError:
        return False
    finally:
        lock.release()
    return True


def _close(store: Store, at: int) -> None:
    meta = store.meta()
    ended: set[str] = set()
    parents: set[str] = set()
    open_spans: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    last = meta.start
    for resource, span in _spans(store):
        span_id = str(span.get("spanId"))
        parents.add(str(span.get("parentSpanId") or ""))
        last = max(last, _time(span, "startTimeUnixNano"), _time(span, "endTimeUnixNano"))
        if _time(span, "endTimeUnixNano"):
            ended.add(span_id)
            open_spans.pop(span_id, None)
        elif span_id not in ended:
            open_spans[span_id] = resource, span
    end = min(max(at or last_sign(store), last), time.time_ns())
    known = {*ended, *open_spans}
    missing = parents - known - {"", meta.root_parent_id}
    if not meta.root_id and meta.trace_id and len(missing) == 1:
        meta.root_id = missing.pop()  # the guest's, which traced alone
    if meta.trace_id and meta.root_id and meta.root_id not in known:
        open_spans[meta.root_id] = (
            _root(meta.sandbox_id),
            {
                "traceId": meta.trace_id,
                "spanId": meta.root_id,
                **({"parentSpanId": meta.root_parent_id} if meta.root_parent_id else {}),
                "name": meta.root_name or "rootSpan",
                "kind": 1,
                "startTimeUnixNano": str(meta.start),
                "attributes": [_pair("source", "runtime"), _pair("sandbox_id", meta.sandbox_id)],
            },
        )
    lines = [_ended(resource, span, end) for resource, span in open_spans.values()]
    _append(store, "".join(lines))
    store.open_spans.unlink(missing_ok=True)
    meta.outcome, meta.end, meta.spans = KILLED, end, len(ended) + len(lines)
    write_meta(store, meta)


def _spans(store: Store) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Resource and span, as far as the lines can be read."""
    for line in store.lines():
        try:
            for resource_spans in parse_json(line)["resourceSpans"]:
                for scope_spans in resource_spans["scopeSpans"]:
                    for span in scope_spans["spans"]:
                        int(span.get("endTimeUnixNano") or 0), int(span["startTimeUnixNano"])
                        yield resource_spans["resource"], span
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # cut off with its writer


def _time(span: dict[str, Any], key: str) -> int:
    return int(span.get(key) or 0)


def _ended(resource: dict[str, Any], span: dict[str, Any], end: int) -> str:
    span["endTimeUnixNano"] = str(max(end, _time(span, "startTimeUnixNano")))
    span["status"] = {"code": 2, "message": CUT_OFF}
    scope = {"scope": {"name": "kata_telemetry"}, "spans": [span]}
    content = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def _root(sandbox_id: str) -> dict[str, Any]:
    from kata_telemetry import otlp

    return {"attributes": [_pair(key, str(value)) for key, value in otlp.resource("kata", sandbox_id).items()]}


def _pair(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def _append(store: Store, text: str) -> None:
    fd = os.open(store.spans, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        # Whoever wrote before may have died in the middle of a line.
        cut = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write((b"\n" if cut else b"") + text.encode())
