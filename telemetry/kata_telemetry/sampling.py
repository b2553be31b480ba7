"""Whether a sandbox is traced, by OpenTelemetry's standard names (OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG).

The decision falls once, for the whole sandbox. Names and their meaning are those of OpenTelemetry's specification
("General SDK Configuration") and of its SDK for Python, so that two programs of one trace decide alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kata_telemetry.span import SpanContext

__all__ = ["NAMES", "Sampler", "SamplerError"]

NAMES: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
DEFAULT: Final = "parentbased_always_on"


class SamplerError(ValueError):
    """A sampler that isn't there, or a ratio that is none; says where it stands."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """One of NAMES; `ratio` (0 to 1) is how many of the traces without a parent are kept by those with a ratio."""

    name: str = DEFAULT
    ratio: float = 1.0

    @classmethod
    def resolve(cls, environ: Mapping[str, str], name: str = "", argument: str = "") -> "Sampler":
        """By our keys `trace_sampler` and `trace_sampler_arg`, else by the standard variables, else the default.

        Raises SamplerError.
        """
        where = ("[runtime] trace_sampler", "[runtime] trace_sampler_arg")
        if not name:
            name, argument = environ.get("OTEL_TRACES_SAMPLER", ""), environ.get("OTEL_TRACES_SAMPLER_ARG", "")
            where = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG")
        name = name.strip().lower() or DEFAULT
        if name not in NAMES:
            raise SamplerError(f"{where[0]}: {name[:80]!r} is none of {', '.join(NAMES)}")
        if not name.endswith("traceidratio") or not argument.strip():
            return cls(name)
        try:
            ratio = float(argument)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise SamplerError(f"{where[1]}: {argument[:80]!r} is no number from 0 to 1")
        return cls(name, ratio)

    def samples(self, trace_id: int, parent: SpanContext | None) -> bool:
        """Whether the trace is kept; `parent` is the caller's span, where there is one."""
        kind = self.name
        if kind.startswith("parentbased_"):
            if parent is not None:
                return bool(parent.flags & 1)
            kind = kind.removeprefix("parentbased_")
        if kind == "traceidratio":
            # As the SDK's TraceIdRatioBased: the lower half of the id is the random number.
            return (trace_id & (2**64 - 1)) < round(self.ratio * 2**64)
        return kind == "always_on"
