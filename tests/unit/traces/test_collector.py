"""Settings for export."""

from typing import Any

import pytest

from kata_traces.send.collector import CollectorSettings, SettingsError, _retry_after


def resolve(environment: dict[str, str] | None = None, **arguments: Any) -> CollectorSettings:
    settings = CollectorSettings.resolve(environment or {}, **arguments)
    assert settings is not None
    return settings


def test_nothing_set_means_no_export() -> None:
    assert CollectorSettings.resolve({}) is None


@pytest.mark.parametrize(
    ("environment", "arguments", "endpoint", "protocol"),
    [
        ({}, {"endpoint": "http://c:4317"}, "http://c:4317", "grpc"),
        ({}, {"endpoint": "http://c:4318"}, "http://c:4318/v1/traces", "http/protobuf"),
        ({}, {"endpoint": "http://c/otlp/", "protocol": "http/protobuf"}, "http://c/otlp/v1/traces", "http/protobuf"),
        ({}, {"endpoint": "https://[::1]:4317"}, "https://[::1]:4317", "grpc"),
        ({}, {"endpoint": "unix:/run/c.sock"}, "unix:/run/c.sock", "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:4317"}, {}, "http://env:4317", "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://env:4317"}, {"endpoint": "http://c:1"}, "http://c:1", "grpc"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://general:4318",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4318/exactly",
            },
            {},
            "http://traces:4318/exactly",
            "http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            {},
            "http://c:9/v1/traces",
            "http/protobuf",
        ),
    ],
)
def test_endpoints(environment: dict[str, str], arguments: dict[str, str], endpoint: str, protocol: str) -> None:
    settings = resolve(environment, **arguments)
    assert (settings.endpoint, settings.protocol) == (endpoint, protocol)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoint": "localhost:4317"}, "no URL: write http://HOST:PORT"),
        ({"endpoint": "http://"}, "no URL"),
        ({"endpoint": "http://c:port"}, "no URL"),
        ({"endpoint": "unix:/x", "protocol": "http/protobuf"}, "no URL"),
        ({"endpoint": "http://c", "protocol": "http/json"}, "none of grpc, http/protobuf"),
        ({"endpoint": "http://c", "headers": "nonsense"}, "name=value"),
        ({"endpoint": "http://c", "headers": "a=b%0d%0ac"}, "can't carry"),
    ],
)
def test_settings_that_cannot_work(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(**arguments)  # type: ignore[arg-type]


def test_other_variables_and_the_way_to_another_process() -> None:
    settings = resolve(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:pass@c:4317",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20x%2C,tenant = a ",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "5000",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
    )
    assert settings.headers == {"authorization": "Bearer x,", "tenant": "a"}
    assert settings.timeout == 5
    assert settings.compress
    assert settings.target == "grpc https://c:4317"
    assert "Bearer" not in repr(settings)
    assert resolve(settings.environment()) == settings
    assert resolve({"OTEL_EXPORTER_OTLP_TIMEOUT": "7"}, endpoint="http://c").timeout == 7
    with pytest.raises(SettingsError, match="timeout 'soon'"):
        resolve({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, endpoint="http://c")
    with pytest.raises(SettingsError, match="compression 'br'"):
        resolve({"OTEL_EXPORTER_OTLP_COMPRESSION": "br"}, endpoint="http://c")


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, "https://c:4317"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "http://c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "t:1", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "TRUE"},
            "http://t:1",
        ),
        # A scheme has the last word (OpenTelemetry specification, "Endpoint URLs for OTLP/gRPC").
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "https://c:4317"),
    ],
)
def test_insecure_is_about_endpoints_without_a_scheme(variables: dict[str, str], endpoint: str) -> None:
    found = CollectorSettings.resolve(variables)
    assert found
    assert found.endpoint == endpoint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("3", 3.0),
        ("86400", 60.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 60.0),
        ("soon", 0.0),
    ],
)
def test_retry_after(text: str | None, seconds: float) -> None:
    assert _retry_after(text) == seconds
