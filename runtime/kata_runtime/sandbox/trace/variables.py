"""What OpenTelemetry's variables say of a sandbox's trace, besides the configuration (docs/tracing.md).

Nothing of OpenTelemetry is imported unless the sandbox is traced and a variable names a package's part of it.
"""

import logging
import os
from typing import TYPE_CHECKING

from kata_runtime.config.model import RuntimeConfig
from kata_runtime.errors import ConfigError
from kata_telemetry.propagation import extract, from_environment
from kata_telemetry.span import Span, SpanContext

if TYPE_CHECKING:
    from kata_traces.send.settings import Target
    from kata_traces.store.store import Store

__all__ = ["caller", "check_keep", "disabled", "exporters", "prepare", "sampled", "worth_keeping"]

_log = logging.getLogger("kata.tracing")


def disabled() -> bool:
    """Whether nothing at all is to be traced; of OTEL_SDK_DISABLED's values only "true", in any case, says so."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def prepare() -> None:
    """Spans will be written: have OpenTelemetry's API find our tracer, and its SDK no variable that it fails at."""
    from kata_traces.sdk import environment

    environment.tidy()
    environment.announce()


def caller(carrier: list[tuple[str, str]], *, wanted: bool) -> SpanContext | None:
    """The span that the sandbox's trace continues, in the metadata of a call, else in the environment.

    OTEL_PROPAGATORS says how it is written there, where the sandbox is traced at all (`wanted`).
    """
    if wanted and os.environ.get("OTEL_PROPAGATORS"):
        from kata_traces.sdk import propagators

        return propagators.parent(carrier) or propagators.from_environment(os.environ)
    return extract(carrier) or from_environment(os.environ)


def sampled(runtime: RuntimeConfig, root: Span, parent: SpanContext | None) -> bool:
    """Whether the trace of `root` is kept: by `[runtime] trace_sampler`, else by OTEL_TRACES_SAMPLER.

    Raises ConfigError for what can't be in the configuration. A variable is the whole system's: OpenTelemetry's
    specification wants a warning and the default.
    """
    from kata_telemetry.sampling import NAMES, Sampler, SamplerError

    check_keep(runtime)
    context, name = root.context, os.environ.get("OTEL_TRACES_SAMPLER", "").strip()
    try:
        if name and name.lower() not in NAMES and not runtime.trace_sampler:
            return _sampled_by(name, root, parent)
        sampler = Sampler.resolve(os.environ, runtime.trace_sampler, runtime.trace_sampler_arg)
    except SamplerError as error:
        if runtime.trace_sampler:
            raise ConfigError(str(error)) from error
        _log.warning("%s; using the default", error)
        sampler = Sampler()
    return sampler.samples(context.trace_id, parent)


def _sampled_by(name: str, root: Span, parent: SpanContext | None) -> bool:
    prepare()
    from kata_traces.sdk import samplers

    verdict = samplers.ask(name, os.environ.get("OTEL_TRACES_SAMPLER_ARG", ""), root.context, parent, root.name)
    root.set(**verdict.attributes)
    root.context = root.context._replace(state=verdict.state)
    return verdict.sampled


def worth_keeping(runtime: RuntimeConfig, store: "Store") -> bool:
    """Whether a finished trace stays, by `[runtime] trace_keep`; it is gone if not."""
    if not runtime.trace_keep:
        return True
    from kata_traces.store.keep import Keep, settle

    return settle(store, Keep.parse(runtime.trace_keep))


def check_keep(runtime: RuntimeConfig) -> None:
    """Raise ConfigError where `[runtime] trace_keep` can't be."""
    if not runtime.trace_keep:
        return
    from kata_traces.store.keep import Keep, KeepError

    try:
        rule = Keep.parse(runtime.trace_keep)
    except KeepError as error:
        raise ConfigError(f"[runtime] trace_keep: {error}") from error
    if rule.slow and not runtime.slow_start_threshold:
        raise ConfigError(
            "[runtime] trace_keep has 'slow', and nothing says what is", hint="set [runtime] slow_start_threshold"
        )


def exporters(runtime: RuntimeConfig) -> "list[Target]":
    """Where the spans go. What can't work is a warning that names it."""
    from kata_runtime.config.export import given
    from kata_traces.send.settings import targets

    def wrong(error: object) -> None:
        _log.warning("the trace is not sent: %s", error)

    return targets(os.environ, given(runtime), wrong)
