"""Entry point `kata` of opentelemetry_context: the API's current span is ours, and the other way round."""

from contextvars import ContextVar, Token
from typing import Any

from opentelemetry.context.context import Context, _RuntimeContext

from kata_telemetry import span as own
from kata_telemetry.span import Span

__all__ = ["KataContext"]


class KataContext(_RuntimeContext):
    """What the API holds besides the span (baggage) is in a context variable of its own."""

    def __init__(self) -> None:
        # The context, and our current span when it was attached.
        self._held: ContextVar[tuple[Context, Span | None]] = ContextVar("kata_otel_context", default=(Context(), None))

    @staticmethod
    def _api() -> Any:
        # Late: this module is loaded in the middle of the import of opentelemetry.context.
        from kata_traces.sdk import api

        return api

    @property
    def _key(self) -> str:
        from opentelemetry.trace.propagation import _SPAN_KEY

        return _SPAN_KEY

    def get_current(self) -> Context:
        """See _RuntimeContext."""
        context, then = self._held.get()
        now = own.current()
        if not now.recording or now is then:
            return context
        return Context({**context, self._key: self._api().ApiSpan(now)})

    def attach(self, context: Context) -> Token[Any]:
        """See _RuntimeContext."""
        from kata_traces.sdk.told import our_context

        api = self._api()
        span, now = context.get(self._key), own.current()
        outer = None
        record: Span | None = now if now.recording else None
        if isinstance(span, api.ApiSpan):
            record = span.record
            outer = own._current.set(record)
        elif isinstance(span, api.trace.Span) and record is not None and span.get_span_context().is_valid:
            # Somebody else's: ours under it have it as their parent.
            record = Span(now.tracer, "", None, {}, {})
            record.context = our_context(span.get_span_context())
            outer = own._current.set(record)
        return (self._held.set((context, record)), outer)  # type: ignore[return-value] # theirs is opaque to the API

    def detach(self, token: Any) -> None:
        """See _RuntimeContext."""
        if isinstance(token, Token):
            token.var.reset(token)  # attached before ours was the API's context
            return
        held, outer = token
        self._held.reset(held)
        if outer is not None:
            own._current.reset(outer)
