"""What surrounds every call from containerd: its span, its log fields, its status. Methods know nothing of these."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from kata_common.contract import snake_case
from kata_runtime.errors import KataError
from kata_runtime.metrics.durations import CALLS
from kata_runtime.shim.failures import to_status
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.logs import log_fields
from kata_telemetry.span import Kind, Level, Site, Span, unrecorded, use

__all__ = ["CallFunnel"]

_trace = Site(package="containerdshim", subsystem="task")
_log = logging.getLogger("kata.shim")

# Kata calls its spans as the methods, but for this one (src/runtime/pkg/containerd-shim-v2/create.go).
_NAMES = {"Create": "create"}
# The stages of a container's life.
_ESSENTIAL = frozenset({"Create", "Start", "Kill", "Delete", "Exec", "Shutdown"})
# What clients ask again and again, as a health check or a dashboard: a detail, and only the first ones of each kind are
# recorded; but all that fail are.
_REPEATING = frozenset({"State", "Connect", "Stats", "Pids", "PingSandbox", "SandboxStatus", "SandboxMetrics"})
_ENOUGH = 32
# What a request is about: its field -> the span's attribute -> the log's field.
_ABOUT = {"id": "container_id", "exec_id": "exec_id", "sandbox_id": "sandbox_id"}
_LOGGED = {"container_id": "container", "exec_id": "exec", "sandbox_id": "sandbox"}


class CallFunnel:
    """`enter` says under which span a call belongs (see `TaskService.enter`)."""

    def __init__(self, enter: Callable[[Call], Span]) -> None:
        self._enter = enter
        self._seen: Counter[str] = Counter()

    @contextmanager
    def __call__(self, call: Call) -> Iterator[None]:
        about = {
            attribute: value
            for field, attribute in _ABOUT.items()
            if isinstance(value := getattr(call.request, field, ""), str) and value
        }
        fields = {_LOGGED[attribute]: value for attribute, value in about.items()}
        with ExitStack() as stack:
            stack.enter_context(log_fields(method=call.method, **fields))
            stack.enter_context(CALLS.timed(snake_case(call.method)))
            stack.enter_context(_statuses())
            root = self._enter(call)
            stack.enter_context(use(root))
            if call.method in _REPEATING:
                detailed = root.recording and root.tracer.level >= Level.DETAILED
                self._seen[call.method] += detailed
                if not detailed or self._seen[call.method] > _ENOUGH:
                    with self._only_failures(call, about, root):
                        yield
                    return
            with self._open(call, about, root):
                yield

    def _open(self, call: Call, about: dict[str, str], root: Span) -> Span:
        level = Level.ESSENTIAL if call.method in _ESSENTIAL else Level.NORMAL
        name = _NAMES.get(call.method, call.method)
        span = _trace.span(name, kind=Kind.SERVER, level=level, lasts=call.method == "Wait", **about)
        if span.recording:
            span.set(rpc_service=call.service)
            # The caller's span: the parent of the root for the first call, a link for the others.
            known = (span.parent_id, root.parent_id if root.recording else 0)
            if call.parent is not None and call.parent.span_id not in known:
                span.link(call.parent)
        return span

    @contextmanager
    def _only_failures(self, call: Call, about: dict[str, str], root: Span) -> Iterator[None]:
        try:
            # Nor what happens in it; the agent counts for itself.
            with unrecorded():
                yield
        except Exception:
            with self._open(call, about, root):
                raise


@contextmanager
def _statuses() -> Iterator[None]:
    """The one place where the runtime's errors become containerd's."""
    try:
        yield
    except KataError as error:
        status = to_status(error)
        if status is error:
            raise
        _log.error("%s", status)
        raise status from error
