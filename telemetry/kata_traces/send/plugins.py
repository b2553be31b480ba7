"""Exporters that are not ours: any of the entry point group `opentelemetry_traces_exporter`, behind our Sender."""

import threading
from typing import Any, Final

from kata_traces.send.collector import Answer, FailedError, UnavailableError

__all__ = ["PluginSender"]

# Seconds for its last words.
FAREWELL: Final = 5.0


class PluginSender:
    """`exporter` is a SpanExporter. It is called on a thread of its own: what hangs in it does not hang us.

    A call that outlasts its time is not repeated while it goes on: its outcome is that of the next attempt.
    """

    def __init__(self, exporter: Any) -> None:  # noqa: ANN401 - a SpanExporter
        self._exporter = exporter
        self._data = b""
        self._call: _Call | None = None

    def send(self, data: bytes, timeout: float) -> Answer:
        """See Sender. What an exporter says is a SUCCESS or a FAILURE: FailedError."""
        call = self._call
        if call is None or self._data != data:
            if call is not None and not call.done.wait(timeout):
                raise UnavailableError("the exporter does not come back")
            call, self._data = _Call(lambda: self._export(data)), data
            self._call = call
        if not call.done.wait(timeout):
            raise UnavailableError(f"the exporter has not come back after {timeout:g} s")
        self._call = None
        if call.error is not None:
            raise FailedError(f"{type(call.error).__name__}: {call.error}"[:1000]) from call.error
        return Answer()

    def _export(self, data: bytes) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        from kata_telemetry import otlp
        from kata_traces.sdk.told import readable

        result = self._exporter.export(readable(otlp.parse(data)))
        if result is not SpanExportResult.SUCCESS:
            raise RuntimeError("the exporter failed and did not say why")

    def close(self) -> None:
        """See Sender."""
        _Call(self._exporter.shutdown).done.wait(FAREWELL)


class _Call:
    """A function that runs on a thread of its own, which keeps nobody from ending."""

    def __init__(self, function: Any) -> None:  # noqa: ANN401 - a callable without arguments
        self.done = threading.Event()
        self.error: Exception | None = None
        self._function = function
        threading.Thread(target=self._run, daemon=True, name="exporter").start()

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:
            self.error = error
        finally:
            self.done.set()
