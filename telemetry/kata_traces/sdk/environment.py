"""OpenTelemetry's variables of the SDK that can be wrong, looked at before the SDK does: it raises when it is imported.

Nothing of OpenTelemetry is imported here.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Final

__all__ = ["announce", "tidy"]

_log = logging.getLogger("kata.tracing")

# Our entry points' name.
OURS: Final = "kata"
# General SDK Configuration, "Attribute Limits" and "Span Limits".
LIMITS: Final = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)


def tidy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take limits that are none out of the environment, with a warning for each: then the default holds."""
    for name in LIMITS:
        text = environment.get(name)
        if text is None or text.strip().lower() == "unset" or (text.strip().isdecimal() and text.isascii()):
            continue
        del environment[name]
        if text.strip():  # empty is the same as not there (General SDK Configuration, "Parsing Empty Value")
            _log.warning("%s: %r is no number from 0 on; the default holds", name, text[:80])


def announce(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenTelemetry's API find our tracer and context (entry points `kata`), unless it was told of others.

    Whoever imports it from now on, does; where somebody has already, its context becomes ours.
    """
    context = environment.setdefault("OTEL_PYTHON_CONTEXT", OURS)
    environment.setdefault("OTEL_PYTHON_TRACER_PROVIDER", OURS)
    api = sys.modules.get("opentelemetry.context")
    if api is not None and context == OURS:
        from kata_traces.sdk.context import KataContext

        if not isinstance(api._RUNTIME_CONTEXT, KataContext):
            api._RUNTIME_CONTEXT = KataContext()  # type: ignore[attr-defined]
