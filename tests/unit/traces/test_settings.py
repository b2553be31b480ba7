"""Settings for export: from arguments and variables to targets."""

from pathlib import Path
from typing import Any

import pytest

from kata_traces.send.collector import _retry_after
from kata_traces.send.settings import CollectorSettings, Given, SettingsError, targets

E, T = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"


def resolve(environment: dict[str, str] | None = None, **arguments: Any) -> CollectorSettings:
    settings = CollectorSettings.resolve(environment or {}, Given(**arguments))
    assert settings is not None
    return settings


def test_nothing_set_means_no_export() -> None:
    assert CollectorSettings.resolve({}) is None
    assert targets({}) == []


@pytest.mark.parametrize(
    ("environment", "arguments", "endpoint", "protocol"),
    [
        ({}, {"endpoint": "http://c:4317"}, "http://c:4317", "grpc"),
        ({}, {"endpoint": "http://c:4318"}, "http://c:4318/v1/traces", "http/protobuf"),
        ({}, {"endpoint": "http://c/otlp/", "protocol": "http/protobuf"}, "http://c/otlp/v1/traces", "http/protobuf"),
        ({}, {"endpoint": "http://c/v1/traces", "protocol": "http/protobuf"}, "http://c/v1/traces", "http/protobuf"),
        ({}, {"endpoint": "https://[::1]:4317"}, "https://[::1]:4317", "grpc"),
        ({}, {"endpoint": "unix:/run/c.sock"}, "unix:/run/c.sock", "grpc"),
        # One collector is one target, however it is written.
        ({}, {"endpoint": "HTTP://C:4317/"}, "http://c:4317", "grpc"),
        ({E + "ENDPOINT": "http://env:4317"}, {}, "http://env:4317", "grpc"),
        ({E + "ENDPOINT": "http://env:4317"}, {"endpoint": "http://c:1"}, "http://c:1", "grpc"),
        ({E + "ENDPOINT": "http://g:4318", T + "ENDPOINT": "http://t:4318/a"}, {}, "http://t:4318/a", "http/protobuf"),
        ({T + "ENDPOINT": "http://t:4318"}, {}, "http://t:4318/", "http/protobuf"),
        ({E + "ENDPOINT": "http://c:9", E + "PROTOCOL": "http/protobuf"}, {}, "http://c:9/v1/traces", "http/protobuf"),
        ({E + "ENDPOINT": "http://c:4318", E + "PROTOCOL": "GRPC"}, {}, "http://c:4318", "grpc"),
        (
            {E + "ENDPOINT": "http://c:9", E + "PROTOCOL": "grpc", T + "PROTOCOL": "http/protobuf"},
            {},
            "http://c:9/v1/traces",
            "http/protobuf",
        ),
        ({E + "PROTOCOL": "http/protobuf"}, {"endpoint": "http://c:4317"}, "http://c:4317/v1/traces", "http/protobuf"),
        ({E + "PROTOCOL": "http/protobuf"}, {"endpoint": "http://c", "protocol": "grpc"}, "http://c", "grpc"),
        # Empty is the same as not there.
        ({E + "ENDPOINT": "http://c:4317", T + "ENDPOINT": "", T + "PROTOCOL": " "}, {}, "http://c:4317", "grpc"),
    ],
)
def test_endpoints(environment: dict[str, str], arguments: dict[str, str], endpoint: str, protocol: str) -> None:
    settings = resolve(environment, **arguments)
    assert (settings.endpoint, settings.protocol) == (endpoint, protocol)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ENDPOINT": "http://"}, "ENDPOINT: 'http://' is no URL: write http://HOST:PORT"),
        ({"ENDPOINT": "http://c:port"}, "ENDPOINT: 'http://c:port' is no URL"),
        ({"ENDPOINT": "http://c:99999"}, "ENDPOINT: 'http://c:99999' is no URL"),
        ({"ENDPOINT": "ftp://c"}, "ENDPOINT: 'ftp://c' is no URL"),
        ({"ENDPOINT": "localhost:4318"}, "ENDPOINT: 'localhost:4318' is no URL"),
        ({"ENDPOINT": "unix:/x", "PROTOCOL": "http/protobuf"}, "ENDPOINT: 'unix:/x' is no URL"),
        ({"PROTOCOL": "http/json"}, "PROTOCOL: 'http/json' is none of grpc, http/protobuf"),
        ({"COMPRESSION": "br"}, "COMPRESSION: 'br' is none of none, gzip"),
        ({"TIMEOUT": "soon"}, "TIMEOUT: 'soon' is no number of milliseconds"),
        ({"TIMEOUT": "0"}, "TIMEOUT: '0' is no number of milliseconds"),
        ({"TIMEOUT": "-1"}, "TIMEOUT: '-1' is no number"),
        ({"TIMEOUT": "nan"}, "TIMEOUT: 'nan' is no number"),
        ({"TIMEOUT": "inf"}, "TIMEOUT: 'inf' is no number"),
        ({"TIMEOUT": "5s"}, "TIMEOUT: '5s' is no number"),
        ({"INSECURE": "yes"}, "INSECURE: 'yes' is none of true, false"),
        ({"HEADERS": "nonsense"}, "HEADERS: is no list of name=value pairs"),
        ({"HEADERS": "a b=c"}, "HEADERS: .*'a b' is no header's name"),
        ({"HEADERS": "a=b%0d%0ac"}, "HEADERS: header 'a' has characters that a header can't carry"),
        ({"CLIENT_KEY": "/k"}, "CLIENT_KEY: '/k' a key needs its certificate"),
        ({"ENDPOINT": "http://me:secret@c:4317"}, "ENDPOINT: a user and password in the URL have no place in gRPC"),
    ],
)
@pytest.mark.parametrize("prefix", [E, T])
def test_what_cannot_work_names_its_variable(prefix: str, variables: dict[str, str], message: str) -> None:
    environment = {T + "ENDPOINT": "http://c:4318", **{prefix + name: value for name, value in variables.items()}}
    if prefix == E and "ENDPOINT" in variables:
        del environment[T + "ENDPOINT"]
    if "localhost" in str(variables):
        environment[E + "PROTOCOL"] = "http/protobuf"
    with pytest.raises(SettingsError, match=prefix + message) as caught:
        resolve(environment)
    assert "secret" not in str(caught.value)


def test_what_cannot_work_names_its_argument() -> None:
    with pytest.raises(SettingsError, match=r"^--endpoint: 'localhost:4317' is no URL"):
        resolve(endpoint="localhost:4317")
    with pytest.raises(SettingsError, match=r"^\[runtime\] otlp_headers: header 'a' has"):
        resolve(endpoint="http://c", headers={"a": "\n"}, named="[runtime] otlp_{}")


def test_other_variables_and_the_way_to_another_process() -> None:
    settings = resolve(
        {
            E + "ENDPOINT": "https://c:4317",
            E + "HEADERS": "Authorization=Bearer%20x%2C,tenant = a ",
            E + "TIMEOUT": "5000",
            E + "CERTIFICATE": "/ca.pem",
            E + "CLIENT_CERTIFICATE": "/mine.pem",
            E + "CLIENT_KEY": "/mine.key",
            E + "COMPRESSION": "gzip",
        }
    )
    assert settings.headers == {"authorization": "Bearer x,", "tenant": "a"}
    assert settings.timeout == 5
    assert settings.compress
    assert settings.target == "grpc https://c:4317"
    assert "Bearer" not in repr(settings)
    assert resolve({**settings.environment(), E + "HEADERS": "other=1"}) == settings


@pytest.mark.parametrize(
    ("text", "seconds"), [("500", 0.5), ("7", 0.007), ("10000", 10), ("600000", 600), ("1.5", 0.0015)]
)
def test_the_timeout_is_in_milliseconds(text: str, seconds: float) -> None:
    settings = resolve({T + "TIMEOUT": text, E + "TIMEOUT": "3"}, endpoint="http://c")
    assert settings.timeout == seconds
    assert resolve(settings.environment()) == settings
    assert resolve({T + "TIMEOUT": text}, endpoint="http://c", timeout=4.0).timeout == 4


@pytest.mark.parametrize(
    ("url", "pair"),
    [
        ("http://me:secret@c:4318", "bWU6c2VjcmV0"),
        ("http://m%40e:s%3Ax@c:4318", "bUBlOnM6eA=="),
        ("http://me@c:4318", "bWU6"),
    ],
)
def test_a_user_in_the_url_is_basic_authentication(url: str, pair: str) -> None:
    for settings in (resolve(endpoint=url), resolve({E + "ENDPOINT": url})):
        assert settings.endpoint == "http://c:4318/v1/traces"
        assert settings.headers == {"authorization": f"Basic {pair}"}
        assert resolve(settings.environment()) == settings
    assert resolve({E + "HEADERS": "authorization=mine"}, endpoint=url).headers == {"authorization": "mine"}


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({E + "ENDPOINT": "c:4317"}, "https://c:4317"),
        ({E + "ENDPOINT": "c:4317", E + "INSECURE": "true"}, "http://c:4317"),
        ({E + "ENDPOINT": "c:4317", E + "INSECURE": "false"}, "https://c:4317"),
        ({E + "ENDPOINT": "c:4317", E + "INSECURE": "true", T + "INSECURE": "False"}, "https://c:4317"),
        ({T + "ENDPOINT": "t:1", T + "INSECURE": "TRUE"}, "http://t:1"),
        # A scheme has the last word (OpenTelemetry specification, "Endpoint URLs for OTLP/gRPC").
        ({E + "ENDPOINT": "https://c:4317", E + "INSECURE": "true"}, "https://c:4317"),
    ],
)
def test_insecure_is_about_endpoints_without_a_scheme(variables: dict[str, str], endpoint: str) -> None:
    assert resolve(variables).endpoint == endpoint


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("", ["grpc http://c:4317"]),
        (" ", ["grpc http://c:4317"]),
        ("otlp", ["grpc http://c:4317"]),
        ("none", []),
        ("console", ["exporter console"]),
        ("otlp,console", ["grpc http://c:4317", "exporter console"]),
        (" console , otlp, console,", ["exporter console", "grpc http://c:4317"]),
    ],
)
def test_exporters_by_name(names: str, found: list[str]) -> None:
    environment = {"OTEL_TRACES_EXPORTER": names, E + "ENDPOINT": "http://c:4317"}
    assert [target.target for target in targets(environment)] == found
    assert [target.exporter for target in targets(environment)] == [
        "otlp" if " http" in name else name.partition(" ")[2] for name in found
    ]


def test_otlp_that_is_asked_for_goes_where_the_specification_says() -> None:
    assert [target.target for target in targets({"OTEL_TRACES_EXPORTER": "otlp"})] == ["grpc http://localhost:4317"]
    [target] = targets({"OTEL_TRACES_EXPORTER": "otlp", E + "PROTOCOL": "http/protobuf"})
    assert target.target == "http/protobuf http://localhost:4318/v1/traces"


def test_an_exporter_that_is_not_there_keeps_no_other_from_its_work() -> None:
    wrong: list[SettingsError] = []
    environment = {"OTEL_TRACES_EXPORTER": "zipkyn,console,none"}
    assert [target.target for target in targets(environment, wrong=wrong.append)] == ["exporter console"]
    assert "OTEL_TRACES_EXPORTER: 'zipkyn' is no exporter" in str(wrong[0])
    assert "console" in str(wrong[0])
    assert "'none' has no others beside it" in str(wrong[1])
    with pytest.raises(SettingsError, match="zipkyn"):
        targets(environment)


def test_given_goes_before_every_variable() -> None:
    given = Given("http://c:4318", "grpc", {"A": "1"}, 2.0, "/ca", "/cert", "/key")
    variables = ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    found = targets({E + name: "nonsense=1" for name in variables}, given)
    files = (Path("/ca"), Path("/cert"), Path("/key"))
    assert found == [CollectorSettings("http://c:4318", "grpc", 2.0, {"a": "1"}, *files)]


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
