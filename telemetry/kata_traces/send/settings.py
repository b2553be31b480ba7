"""Where spans are sent, and how: the one way from a configuration, a command line and the environment to settings.

The variables are OpenTelemetry's (https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and
…/configuration/sdk-environment-variables/); those for traces win over the general ones, and what a configuration or a
command line says wins over both. The runtime, the exporter's process, `trace push` and the trace forwarder all ask
`targets`, so that one collector is one target on the ledger whoever sends to it.
"""

import base64
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Protocol, Self

__all__ = ["GROUP", "CollectorSettings", "Given", "PluginSettings", "SettingsError", "Target", "targets"]

PROTOCOLS: Final = ("grpc", "http/protobuf")
# Seconds; the specification's default.
TIMEOUT: Final = 10.0
EXPORTERS: Final = "OTEL_TRACES_EXPORTER"
# Entry points of exporters, and seconds for one export: the specification's default (OTEL_BSP_EXPORT_TIMEOUT).
GROUP: Final = "opentelemetry_traces_exporter"
PLUGIN_TIMEOUT: Final = 30.0
# Where the specification has OTLP go that was asked for by name alone.
DEFAULT_ENDPOINTS: Final = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}


class SettingsError(ValueError):
    """Settings for export that can't work; says which one and what it should be."""


class Target(Protocol):
    """One that spans are sent to."""

    @property
    def exporter(self) -> str:
        """What OTEL_TRACES_EXPORTER calls it."""
        ...

    @property
    def target(self) -> str:
        """Its name on the ledger and in messages; holds no secret."""
        ...

    @property
    def timeout(self) -> float:
        """Of one request, in seconds."""
        ...

    def environment(self) -> dict[str, str]:
        """The same settings as variables, for another process."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """What is said of an export before any variable is asked; what is empty says nothing. `timeout` in seconds.

    `named` is how whoever says it calls his settings, for messages.
    """

    endpoint: str = ""
    protocol: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 0.0
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""
    named: str = "--{}"


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """Where and how to send by OTLP. `timeout` in seconds; `headers` may hold secrets and are not shown."""

    endpoint: str
    protocol: str
    timeout: float = TIMEOUT
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    compress: bool = False

    @classmethod
    def resolve(cls, environment: Mapping[str, str], given: Given | None = None) -> Self | None:
        """Settings from what is given and the environment, or None where neither names an endpoint.

        Raises SettingsError.
        """
        found = _Found(environment, given or Given())
        if not found["ENDPOINT"].text:
            return None
        protocol = _one_of(found["PROTOCOL"], PROTOCOLS) or _protocol_of(found["ENDPOINT"].text)
        endpoint, authorization = _endpoint(found["ENDPOINT"], protocol, insecure=found["INSECURE"])
        if given and given.headers:
            where = given.named.format("headers")
            headers = {_header(key, value, where): value for key, value in given.headers.items()}
        else:
            headers = _headers(found["HEADERS"])
        files = {name: found[name] for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")}
        if files["CLIENT_KEY"].text and not files["CLIENT_CERTIFICATE"].text:
            files["CLIENT_KEY"].refuse("a key needs its certificate beside it")
        return cls(
            endpoint=endpoint,
            protocol=protocol,
            timeout=(given.timeout if given else 0.0) or _timeout(found["TIMEOUT"]),
            headers=authorization | headers,
            certificate=files["CERTIFICATE"].path,
            client_certificate=files["CLIENT_CERTIFICATE"].path,
            client_key=files["CLIENT_KEY"].path,
            compress=_one_of(found["COMPRESSION"], ("none", "gzip")) == "gzip",
        )

    @property
    def exporter(self) -> str:
        """See Target."""
        return "otlp"

    @property
    def target(self) -> str:
        """See Target."""
        return f"{self.protocol} {self.endpoint}"

    def environment(self) -> dict[str, str]:
        """See Target: headers on a command line could be read by anyone."""
        variables = {
            "ENDPOINT": self.endpoint,
            "PROTOCOL": self.protocol,
            "TIMEOUT": repr(self.timeout * 1000),
            "HEADERS": ",".join(f"{key}={urllib.parse.quote(value)}" for key, value in self.headers.items()),
            "CERTIFICATE": str(self.certificate or ""),
            "CLIENT_CERTIFICATE": str(self.client_certificate or ""),
            "CLIENT_KEY": str(self.client_key or ""),
            "COMPRESSION": "gzip" if self.compress else "none",
        }
        return {f"OTEL_EXPORTER_OTLP_TRACES_{name}": value for name, value in variables.items()}


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """An exporter of another package by its name in `opentelemetry_traces_exporter`; it knows where to send."""

    exporter: str
    timeout: float = PLUGIN_TIMEOUT

    @classmethod
    def named(cls, name: str) -> Self:
        """Raises SettingsError where no installed package has it."""
        from importlib.metadata import entry_points

        installed = entry_points(group=GROUP).names
        if name not in installed:
            names = ", ".join(sorted({"otlp", "none", *installed}))
            raise SettingsError(f"{EXPORTERS}: {name[:80]!r} is no exporter of an installed package; there are {names}")
        return cls(name)

    @property
    def target(self) -> str:
        """See Target."""
        return f"exporter {self.exporter}"

    def environment(self) -> dict[str, str]:
        """See Target: the variables it looks at are in the environment already."""
        return {}


def targets(
    environment: Mapping[str, str], given: Given | None = None, wrong: Callable[[SettingsError], None] | None = None
) -> list[Target]:
    """All that the spans go to: what OTEL_TRACES_EXPORTER names, where it is set, else a collector if one is named.

    What can't work is told to `wrong`, and the others go on; without it, it is raised (SettingsError).
    """
    names = dict.fromkeys(name for part in environment.get(EXPORTERS, "").split(",") if (name := part.strip()))
    if not names:
        names = {"": None}
    elif "none" in names and len(names) == 1:
        return []
    found: list[Target] = []
    for name in names:
        try:
            target = _named(name, environment, given)
        except SettingsError as error:
            if wrong is None:
                raise
            wrong(error)
            continue
        found += [target] if target else []
    return found


def _named(name: str, environment: Mapping[str, str], given: Given | None) -> Target | None:
    if name == "none":
        raise SettingsError(f"{EXPORTERS}: 'none' has no others beside it")
    if name in ("", "otlp"):
        settings = CollectorSettings.resolve(environment, given)
        if settings or not name:
            return settings
        protocol = _one_of(_Found(environment, given or Given())["PROTOCOL"], PROTOCOLS) or "grpc"
        variable = {"OTEL_EXPORTER_OTLP_ENDPOINT": DEFAULT_ENDPOINTS[protocol], "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        return CollectorSettings.resolve({**environment, **variable}, given)
    return PluginSettings.named(name)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What one setting says, and where."""

    text: str
    where: str

    @property
    def path(self) -> Path | None:
        return Path(self.text) if self.text else None

    def refuse(self, why: str, *, secret: bool = False) -> NoReturn:
        said = "" if secret else f" {self.text[:200]!r}"
        raise SettingsError(f"{self.where}:{said} {why}" if said else f"{self.where}: {why}")


class _Found:
    """Looks a setting up where it may stand, the most particular place first."""

    def __init__(self, environment: Mapping[str, str], given: Given) -> None:
        self._environment, self._given = environment, given

    def __getitem__(self, name: str) -> _Setting:
        own = getattr(self._given, name.lower(), "")
        if isinstance(own, str) and own:
            return _Setting(own, self._given.named.format(name.lower()))
        for prefix in ("OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"):
            if value := self._environment.get(prefix + name, "").strip():
                return _Setting(value, prefix + name)
        return _Setting("", f"OTEL_EXPORTER_OTLP_{name}")


def _one_of(setting: _Setting, choices: tuple[str, ...]) -> str:
    text = setting.text.lower()
    if text and text not in choices:
        setting.refuse(f"is none of {', '.join(choices)}")
    return text


def _protocol_of(endpoint: str) -> str:
    # 4318 is OTLP/HTTP's port, 4317 OTLP/gRPC's.
    try:
        return "http/protobuf" if urllib.parse.urlsplit(endpoint).netloc.endswith(":4318") else "grpc"
    except ValueError:  # which is said where the endpoint is looked at
        return "grpc"


def _endpoint(setting: _Setting, protocol: str, *, insecure: _Setting) -> tuple[str, dict[str, str]]:
    """The URL in one form for one place, without a user; and the header that the user has become."""
    text, variable = setting.text, setting.where.startswith("OTEL_")
    plain = _one_of(insecure, ("true", "false")) == "true"
    if variable and protocol == "grpc" and "://" not in text and not text.startswith("unix:"):
        # HOST:PORT is gRPC's own form, and OTEL_EXPORTER_OTLP_INSECURE is about nothing else.
        text = f"{'http' if plain else 'https'}://{text}"
    if protocol == "grpc" and text.startswith("unix:"):
        return text, {}
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        # What is sent elsewhere than where it seems to go; urlsplit itself drops some of them.
        valid = valid and text.isprintable() and not any(character.isspace() for character in text)
    except ValueError:
        valid = False
    if not valid:
        shown = _Setting(text.rpartition("@")[2], setting.where)
        shown.refuse("is no URL: write http://HOST:PORT, https://… or (grpc) unix:PATH")
    authorization = {}
    if "@" in parts.netloc:
        if protocol == "grpc":
            message = "a user and password in the URL have no place in gRPC: give a header, authorization=Basic%20…"
            setting.refuse(message, secret=True)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
        authorization = {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    parts = parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}")
    if protocol == "grpc":
        parts = parts._replace(path="", query="", fragment="")
    elif setting.where != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" and not parts.path.rstrip("/").endswith("/v1/traces"):
        parts = parts._replace(path=parts.path.rstrip("/") + "/v1/traces")
    elif not parts.path:
        parts = parts._replace(path="/")
    return parts.geturl(), authorization


def _timeout(setting: _Setting) -> float:
    """Milliseconds, as the specification has it (OpenTelemetry Python's own exporters take seconds)."""
    if not setting.text:
        return TIMEOUT
    try:
        value = float(setting.text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86_400_000:
        setting.refuse("is no number of milliseconds from 1 to 86400000")
    return value / 1000


def _headers(setting: _Setting) -> dict[str, str]:
    """`key=value,key=value`, values percent-encoded as in W3C Baggage."""
    headers = {}
    for pair in filter(None, (part.strip() for part in setting.text.split(","))):
        key, equals, value = pair.partition("=")
        value = urllib.parse.unquote(value.strip())
        if not equals:
            setting.refuse("is no list of name=value pairs separated by commas", secret=True)
        headers[_header(key, value, setting.where)] = value
    return headers


def _header(key: str, value: str, where: str) -> str:
    """A header's name as it is sent. Its value is never shown."""
    key = key.strip().lower()
    if not key or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in key):
        raise SettingsError(f"{where}: no list of name=value pairs: {key[:80]!r} is no header's name")
    if not (value.isascii() and value.isprintable()):
        raise SettingsError(f"{where}: header {key!r} has characters that a header can't carry")
    return key
