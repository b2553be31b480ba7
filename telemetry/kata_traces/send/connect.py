"""From a target to its sender."""

from kata_traces.send.collector import GrpcSender, HttpSender, Sender
from kata_traces.send.settings import EXPORTERS, GROUP, CollectorSettings, SettingsError, Target

__all__ = ["connect"]


def connect(target: Target) -> Sender:
    """A sender; it dials when it has something to send. Raises SettingsError where that can't be."""
    return _to_collector(target) if isinstance(target, CollectorSettings) else _to_plugin(target)


def _to_collector(settings: CollectorSettings) -> Sender:
    try:
        return GrpcSender(settings) if settings.protocol == "grpc" else HttpSender(settings)
    except OSError as error:
        files = (settings.certificate, settings.client_certificate, settings.client_key)
        names = ", ".join(str(file) for file in files if file)
        raise SettingsError(f"certificate for {settings.target} ({names}): {error}") from error


def _to_plugin(target: Target) -> Sender:
    from importlib.metadata import entry_points

    from kata_traces.send.plugins import PluginSender

    try:
        [point, *_] = entry_points(group=GROUP, name=target.exporter)
        return PluginSender(point.load()())
    except Exception as error:
        message = f"{EXPORTERS}: {target.exporter!r} does not start: {type(error).__name__}: {error}"
        raise SettingsError(message[:1000]) from error
