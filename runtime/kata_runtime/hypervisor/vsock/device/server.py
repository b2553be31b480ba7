"""The loop: one epoll over the socket to QEMU, the rings' eventfds, listeners and the host's ends of connections.

The hybrid-vsock convention is Firecracker's (docs/vsock.md), as Kata uses it: a client says `CONNECT <port>\\n` and
reads `OK <host port>\\n` when the guest has accepted; what the guest connects to goes to the socket `<path>_<port>`.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, epoll
from time import monotonic
from typing import Final

from kata_runtime.hypervisor.vsock.device import message as m
from kata_runtime.hypervisor.vsock.device.connection import Connection, State, Stream
from kata_runtime.hypervisor.vsock.device.device import Device
from kata_runtime.hypervisor.vsock.device.frontend import TX, Session
from kata_runtime.hypervisor.vsock.device.message import FrontendError
from kata_runtime.hypervisor.vsock.device.ring import RingError

Handler = Callable[[int], None]

# "CONNECT 4294967295\n" is 19 bytes.
_MAX_PREAMBLE: Final = 32
# Edge-triggered: one registration for a socket's life, except while it takes no more bytes.
_STREAM_EVENTS: Final = EPOLLIN | EPOLLRDHUP | EPOLLET
_CONTROL_SPACE: Final = socket.CMSG_SPACE(m.MAX_REGIONS * 4)
# Connections accepted in a row, and how long to leave a listener alone when the process is out of fds (s).
_ACCEPTS: Final = 16
_ACCEPT_PAUSE: Final = 1.0


class Server:
    """One VM's backend. `forwards` are (listener, guest port); all sockets become the server's."""

    def __init__(
        self,
        vhost: socket.socket,
        guest_cid: int,
        *,
        log: Callable[[str, str], None],
        hybrid: socket.socket | None = None,
        uds_path: str | None = None,
        forwards: list[tuple[socket.socket, int]] | None = None,
        hold_timeout: float,
        max_connections: int,
    ) -> None:
        self.log = log
        self._uds_path = uds_path
        self._hold_timeout = hold_timeout
        self._epoll = epoll()
        self._handlers: dict[int, Handler] = {}
        self._streams: dict[Connection, socket.socket] = {}
        # Sockets to close when a batch of events is done: until then their number must not be another's.
        self._closing: list[socket.socket] = []
        # Hybrid clients whose first line is not complete, with their deadlines; the oldest comes first.
        self._greeting: dict[socket.socket, float] = {}
        self._max_greeting = max_connections
        self._paused: list[tuple[socket.socket, Handler]] = []
        self._resume_at = 0.0
        self._stopping = False
        self._device = Device(
            guest_cid, self, clock=monotonic, hold_timeout=hold_timeout, max_connections=max_connections
        )
        self._session = Session(self._device, self)
        self._vhost = vhost
        self._listeners: list[socket.socket] = []
        vhost.setblocking(False)
        self._message = bytearray()
        self._message_fds: list[int] = []
        self._watch(vhost.fileno(), EPOLLIN, self._on_vhost)
        if hybrid is not None:
            self._listen(hybrid, self._greet)
        for listener, port in forwards or ():
            self._listen(listener, self._forwarder(port))

    def serve(self, stop_fd: int) -> None:
        """Work until QEMU hangs up, or `stop_fd` is readable. Raises FrontendError."""
        self._watch(stop_fd, EPOLLIN, self._on_stop)
        more = False
        while not self._stopping:
            for fd, events in self._epoll.poll(0 if more else self._timeout(), 64):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            self._expire()
            try:
                more = self._device.run()
            except RingError as error:
                more = False
                self._session.broken(error)
            self._session.signal()
            if self._closing:
                self._close_sockets()

    def close(self) -> None:
        """Close everything."""
        self._session.close()
        for fd in self._message_fds:
            os.close(fd)
        self._closing += [*self._streams.values(), *self._greeting, *self._listeners, self._vhost]
        self._close_sockets()
        self._epoll.close()

    # What the device and the session need (their protocols Host and Kicks).

    def dial(self, port: int) -> Stream | None:
        """Connect to `<uds path>_<port>`. A unix socket answers at once; a full queue counts as refused."""
        if self._uds_path is None:
            return None
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            connected.connect(f"{self._uds_path}_{port}")
        except OSError as error:
            connected.close()
            self.log("debug", f"guest's connection to host port {port} refused: {error}")
            return None
        return connected

    def adopt(self, connection: Connection) -> None:
        """Watch the socket that `dial` made."""
        stream = connection.stream
        assert isinstance(stream, socket.socket)
        self._adopt(connection, stream)

    def watch_writable(self, connection: Connection, wanted: bool) -> None:
        """Add or remove EPOLLOUT."""
        stream = self._streams.get(connection)
        if stream is not None:
            self._epoll.modify(stream.fileno(), _STREAM_EVENTS | EPOLLOUT if wanted else _STREAM_EVENTS)

    def drop(self, connection: Connection) -> None:
        """Forget the connection's socket, and close it soon."""
        stream = self._streams.pop(connection, None)
        if stream is not None:
            self._unwatch(stream.fileno())
            self._closing.append(stream)

    def watch_kick(self, fd: int, ring: int) -> None:
        """Edge-triggered, so that the eventfd's counter never has to be read."""
        self._watch(fd, EPOLLIN | EPOLLET, self._on_tx_kick if ring == TX else self._on_rx_kick)

    def forget_kick(self, fd: int) -> None:
        """Stop watching an eventfd."""
        self._unwatch(fd)

    # Events.

    def _on_stop(self, _events: int) -> None:
        self._stopping = True

    def _on_tx_kick(self, _events: int) -> None:
        self._device.tx_pending = True

    def _on_rx_kick(self, _events: int) -> None:
        self._device.rx_kick()

    def _on_vhost(self, _events: int) -> None:
        """Read one message, as far as it is there."""
        wanted = m.HEADER.size
        if len(self._message) >= wanted:
            wanted += m.parse_header(self._message[:wanted])[2]
        try:
            data, ancillary, flags, _ = self._vhost.recvmsg(
                wanted - len(self._message), _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionError:
            data, ancillary, flags = b"", [], 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._message_fds += memoryview(content[: len(content) & ~3]).cast("i")
        if flags & socket.MSG_CTRUNC or len(self._message_fds) > m.MAX_REGIONS:
            raise FrontendError(f"more than {m.MAX_REGIONS} file descriptors in one message")
        if not data:
            self.log("debug", "QEMU hung up")
            self._stopping = True
            return
        self._message += data
        if len(self._message) == wanted:
            self._handle_message()

    def _handle_message(self) -> None:
        header = m.HEADER.size
        request, flags, size = m.parse_header(self._message[:header])
        if len(self._message) < header + size:
            return  # the payload is the next read
        payload, self._message = bytes(self._message[header:]), bytearray()
        fds, self._message_fds = self._message_fds, []
        answer = self._session.handle(m.Message(request, flags, payload, fds))
        if not answer:
            return
        try:
            sent = self._vhost.send(answer)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            return  # the next read tells
        if sent != len(answer):
            raise FrontendError("replies are not read")

    def _forwarder(self, port: int) -> Callable[[socket.socket], None]:
        def accepted(client: socket.socket) -> None:
            self._connect(client, port, announce=False)

        return accepted

    def _greet(self, client: socket.socket) -> None:
        if len(self._greeting) >= self._max_greeting:
            client.close()
            return
        self._greeting[client] = monotonic() + self._hold_timeout
        self._watch(client.fileno(), _STREAM_EVENTS, lambda _events: self._on_greeting(client))

    def _on_greeting(self, client: socket.socket) -> None:
        """Look for the first line; what follows it stays in the socket, for the guest."""
        port = -1
        try:
            start = client.recv(_MAX_PREAMBLE, socket.MSG_PEEK)
            line, newline, _ = start.partition(b"\n")
            if start and not newline and len(start) < _MAX_PREAMBLE:
                return
            verb, _, number = line.partition(b" ")
            if newline and verb == b"CONNECT" and number.isdigit():
                port = int(number)
            # A socket that is closed with bytes unread gives its client an error instead of an end.
            client.recv(len(line) + 1 if port >= 0 else 4096)
        except BlockingIOError:
            return
        except OSError:
            pass
        del self._greeting[client]
        self._unwatch(client.fileno())
        if port < 0:
            self.log("info", "a client of the hybrid socket did not say CONNECT <port>")
            self._closing.append(client)
        else:
            self._connect(client, port, announce=True)

    def _connect(self, client: socket.socket, port: int, *, announce: bool) -> None:
        connection = self._device.connect(client, port, announce=announce)
        if connection is None:
            self.log("warning", f"a connection to guest port {port} is refused: bad port, or too many connections")
            self._closing.append(client)
            return
        self._adopt(connection, client)

    def _adopt(self, connection: Connection, stream: socket.socket) -> None:
        self._streams[connection] = stream
        device = self._device

        def on_stream(events: int) -> None:
            if events & EPOLLOUT and connection.wants_write:
                device.writable(connection)
            if events & (EPOLLHUP | EPOLLERR):
                self._on_hang_up(connection)
            elif events & EPOLLRDHUP:
                connection.ended = True
                device.readable(connection)
            elif events & EPOLLIN:
                device.readable(connection)

        self._watch(stream.fileno(), _STREAM_EVENTS, on_stream)

    def _on_hang_up(self, connection: Connection) -> None:
        stream = self._streams.get(connection)
        if stream is None:
            return
        if connection.state is State.CONNECTING:
            # A client that wrote all it had and left before the guest was there is still to be heard.
            with contextlib.suppress(OSError):
                if stream.recv(1, socket.MSG_PEEK):
                    connection.hung_up = connection.ended = True
                    return
        self._device.hung_up(connection)

    def _listen(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        listener.setblocking(False)
        self._listeners.append(listener)

        def on_clients(_events: int) -> None:
            for _ in range(_ACCEPTS):
                try:
                    client, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    return
                except OSError as error:
                    self.log("warning", f"no more connections for a while: {error}")
                    self._unwatch(listener.fileno())
                    self._paused.append((listener, on_clients))
                    self._resume_at = monotonic() + _ACCEPT_PAUSE
                    return
                client.setblocking(False)
                accepted(client)

        self._watch(listener.fileno(), EPOLLIN, on_clients)

    # Bookkeeping.

    def _watch(self, fd: int, events: int, handler: Handler) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _close_sockets(self) -> None:
        for each in self._closing:
            each.close()
        self._closing.clear()

    def _timeout(self) -> float | None:
        deadlines = [self._device.deadline(), self._resume_at if self._paused else None]
        if self._greeting:
            deadlines.append(next(iter(self._greeting.values())))
        first = min((deadline for deadline in deadlines if deadline is not None), default=None)
        return None if first is None else max(first - monotonic(), 0)

    def _expire(self) -> None:
        """Whatever is due by the clock. (The device looks at its own clock only when it has something to time.)"""
        deadline = self._device.deadline()
        if deadline is None and not self._greeting and not self._paused:
            return
        now = monotonic()
        if deadline is not None and deadline <= now:
            self._device.expire()
        for client in [client for client, due in self._greeting.items() if due <= now]:
            del self._greeting[client]
            self._unwatch(client.fileno())
            self._closing.append(client)
        if self._paused and self._resume_at <= now:
            for listener, handler in self._paused:
                self._watch(listener.fileno(), EPOLLIN, handler)
            self._paused.clear()
