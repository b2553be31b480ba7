"""What surrounds every call from containerd: its span and its log fields. Methods know nothing of either."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.logs import log_fields
from kata_telemetry.span import Kind, Site, Span, use

__all__ = ["CallFunnel"]

_trace = Site(package="containerdshim", subsystem="task")

# Kata calls its spans as the methods, but for this one (src/runtime/pkg/containerd-shim-v2/create.go).
_NAMES = {"Create": "create"}
# What clients ask again and again, as a health check or a dashboard: only the first ones of each kind are recorded, and
# all that fail.
_REPEATING = frozenset({"State", "Stats", "Pids", "PingSandbox", "SandboxStatus", "SandboxMetrics"})
_ENOUGH = 32
# What a request is about: its field -> the span's attribute -> the log's field.
_ABOUT = {"id": "container_id", "exec_id": "exec_id", "sandbox_id": "sandbox_id"}
_LOGGED = {"container_id": "container", "exec_id": "exec", "sandbox_id": "sandbox"}


class CallFunnel:
    """`root` says under which span a call belongs (see `TaskService.root_span`)."""

    def __init__(self, root: Callable[[Call], Span]) -> None:
        self._root = root
        self._seen: Counter[str] = Counter()

    @contextmanager
    def __call__(self, call: Call) -> Iterator[None]:
        about = {
            attribute: value
            for field, attribute in _ABOUT.items()
            if isinstance(value := getattr(call.request, field, ""), str) and value
        }
        fields = {_LOGGED[attribute]: value for attribute, value in about.items()}
        with log_fields(method=call.method, **fields), use(self._root(call)):
            if call.method in _REPEATING:
                self._seen[call.method] += 1
                if self._seen[call.method] > _ENOUGH:
                    with self._only_failures(call, about):
                        yield
                    return
            with self._open(call, about):
                yield

    def _open(self, call: Call, about: dict[str, str]) -> Span:
        span = _trace.span(_NAMES.get(call.method, call.method), kind=Kind.SERVER, **about)
        if span.recording:
            span.set(rpc_service=call.service)
            # The caller's span: the parent of the root for the first call, a link for the others.
            if call.parent is not None and call.parent.span_id != span.parent_id:
                span.link(call.parent)
        return span

    @contextmanager
    def _only_failures(self, call: Call, about: dict[str, str]) -> Iterator[None]:
        try:
            yield
        except Exception:
            with self._open(call, about):
                raise
