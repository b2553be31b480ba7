"""What the configuration says of an export, as kata_traces takes it: one place for the runtime and `trace push`."""

from kata_runtime.config.model import RuntimeConfig
from kata_traces.send.settings import Given

__all__ = ["given"]


def given(runtime: RuntimeConfig) -> Given:
    """The keys `otlp_…`; what is empty is left to OpenTelemetry's variables."""
    return Given(
        endpoint=runtime.otlp_endpoint,
        protocol=runtime.otlp_protocol,
        headers=runtime.otlp_headers,
        timeout=runtime.otlp_timeout,
        certificate=runtime.otlp_certificate,
        client_certificate=runtime.otlp_client_certificate,
        client_key=runtime.otlp_client_key,
        named="[runtime] otlp_{}",
    )
