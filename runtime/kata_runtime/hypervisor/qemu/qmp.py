"""QMP, the conversation with QEMU: one connection for the VM's life, a span and a transcript line per command."""

import asyncio
import json
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kata_runtime.errors import HypervisorError, QmpError
from kata_telemetry.span import Kind, Site

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ["Qmp", "Transcript"]

_trace = Site(package="hypervisor", subsystem="qmp")
_TRANSCRIPT_LINES = 500
_LINE_LIMIT = 2048
# What qemu.qmp lets through besides its own errors where what comes is no QMP, or no UTF-8, or nothing any more.
_NO_QMP = (OSError, EOFError, ValueError)


class Transcript:
    """The last messages of the conversation, `-->` ours and `<--` QEMU's, with seconds since it began."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_TRANSCRIPT_LINES)
        self._begin = time.monotonic()

    def add(self, direction: str, message: Mapping[str, object]) -> None:
        text = json.dumps(dict(message), default=dict)[:_LINE_LIMIT]
        self._lines.append(f"{time.monotonic() - self._begin:9.6f} {direction} {text}")

    def save(self, path: Path) -> None:
        """Write it to a file."""
        with suppress(OSError):  # a full disk costs the log, and nothing else
            path.write_text("".join(f"{line}\n" for line in self._lines))


class _Expected(NamedTuple):
    """An event that somebody waits for."""

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    came: "asyncio.Future[Mapping[str, Any]]"


class Qmp:
    """A monitor that is connected. Commands run one after another, as QEMU does them anyway."""

    def __init__(self, client: "QMPClient", transcript: Transcript) -> None:
        self._client = client
        self._transcript = transcript
        self._expected: set[_Expected] = set()
        self._one_at_a_time = asyncio.Lock()
        self._sending = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def connected(
        cls, end: socket.socket, *, name: str, transcript: Transcript, timeout: float
    ) -> AsyncIterator["Qmp"]:
        """Greet and negotiate on our end of the monitor's socketpair within `timeout` seconds; takes the socket over.

        Raises:
            HypervisorError: no QMP came out of it.
        """
        # Here and not at the top: 50 ms of imports that only the side with a VM needs.
        from qemu.qmp import ConnectError, EventListener, QMPClient, QMPError

        # What goes wrong on the monitor is said by our own errors, with QEMU's last words.
        logging.getLogger("qemu").setLevel(logging.CRITICAL)
        client = QMPClient(name)
        listener = EventListener()
        client.register_listener(listener)
        try:
            with _trace.span("qmp.connect"):
                async with asyncio.timeout(timeout):
                    await client.connect(end)
        except (ConnectError, TimeoutError, *_NO_QMP) as error:
            end.close()
            raise HypervisorError(
                f"QEMU's monitor did not answer: {str(error) or f'nothing within {timeout:g} s'}"
            ) from error
        qmp = cls(client, transcript)
        events = asyncio.create_task(qmp._follow(listener))
        try:
            yield qmp
        finally:
            events.cancel()
            try:
                async with asyncio.timeout(1):
                    await client.disconnect()
            except (QMPError, TimeoutError, *_NO_QMP):
                pass  # QEMU has gone, or goes: what there is to know about that, its exit status says

    async def _follow(self, listener: "AsyncIterator[Mapping[str, Any]]") -> None:
        try:
            async for event in listener:
                self._transcript.add("<--", event)
                data = event.get("data", {})
                for expected in self._expected:
                    if event["event"] == expected.name and expected.matches(data) and not expected.came.done():
                        expected.came.set_result(data)
        finally:
            for expected in self._expected:
                expected.came.cancel()

    @contextmanager
    def expecting(
        self, name: str, matches: Callable[[Mapping[str, Any]], bool]
    ) -> Iterator["asyncio.Future[Mapping[str, Any]]"]:
        """The data of the first event of this name from here on that matches, as a future."""
        expected = _Expected(name, matches, asyncio.get_running_loop().create_future())
        self._expected.add(expected)
        try:
            yield expected.came
        finally:
            self._expected.discard(expected)
            expected.came.cancel()

    async def send_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a file descriptor, which later commands call `name`.

        Raises:
            HypervisorError: as `execute`.
        """
        await self._send(fd, "getfd", {"fdname": name})

    async def send_file(self, number: int, fd: int) -> None:
        """Give QEMU a copy of an open file, which it opens as /dev/fdset/`number` (QEMU, docs/interop/qmp-spec.rst).

        Raises:
            HypervisorError: as `execute`.
        """
        await self._send(fd, "add-fd", {"fdset-id": number})

    async def _send(self, fd: int, command: str, arguments: Mapping[str, object]) -> None:
        from qemu.qmp import QMPError

        try:
            async with self._sending:
                self._client.send_fd_scm(fd)
                await self.execute(command, arguments)
        except (QMPError, OSError) as error:
            raise HypervisorError(f"QEMU's monitor broke when a file was passed: {error}") from error

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0
    ) -> object:
        """Run a command and return its result.

        Raises:
            QmpError: QEMU refused.
            HypervisorError: the connection broke, or there was no answer within `timeout` seconds.
        """
        from qemu.qmp import ExecuteError, QMPError

        with _trace.span(f"qmp.{command}", kind=Kind.CLIENT) as span:
            span.set(**_what(arguments))
            async with self._one_at_a_time:
                self._transcript.add("-->", {"execute": command, "arguments": dict(arguments or {})})
                try:
                    async with asyncio.timeout(timeout):
                        result = await self._client.execute(command, dict(arguments) if arguments else None)
                except ExecuteError as error:
                    self._transcript.add("<--", {"error": error.error.error.desc})
                    raise QmpError(command, error.error_class, error.error.error.desc) from error
                except TimeoutError as error:
                    raise HypervisorError(f"QEMU did not answer {command} within {timeout:g} s") from error
                except (QMPError, *_NO_QMP) as error:
                    raise HypervisorError(f"QEMU's monitor broke during {command}: {error}") from error
                self._transcript.add("<--", {"return": result})
                return result


def _what(arguments: Mapping[str, object] | None) -> dict[str, str]:
    """The arguments that say what a command was about; the others may be long."""
    wanted = ("driver", "id", "device", "qom-type", "node-name")
    return {f"qmp.{key}": str(value) for key, value in (arguments or {}).items() if key in wanted}
