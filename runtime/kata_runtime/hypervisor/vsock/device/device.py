"""The device: packets between two rings and the connections.

Payload is not copied on its way: the host's sockets receive straight into the guest's RX buffers and send straight from
its TX buffers. I/O happens only through `Stream` and `Host`.

Bounds, all against a hostile guest: connections (`max_connections`), bytes held for slow host sockets (each
connection's window), answers that wait for RX buffers (`MAX_ANSWERS`; beyond it TX stands still), packets handled in
one go (`BURST`).
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from kata_runtime.hypervisor.vsock.device import packet
from kata_runtime.hypervisor.vsock.device.connection import Connection, Do, State, Stream
from kata_runtime.hypervisor.vsock.device.packet import HEADER, HEADER_SIZE, HOST_CID, RST, RW, STREAM
from kata_runtime.hypervisor.vsock.device.ring import Ring, RingError, cut, scatter

MAX_ANSWERS: Final = 1024
# Packets per ring before other file descriptors get a look; one interrupt of the guest follows each burst.
BURST: Final = 64
# Linux' default for its own side of a vsock (VIRTIO_VSOCK_DEFAULT_BUF_SIZE of 6.1).
WINDOW: Final = 256 * 1024
# Connections beyond this sum of windows get a small one.
WINDOW_BUDGET: Final = 64 * 1024 * 1024
SMALL_WINDOW: Final = 32 * 1024
# VSOCK_CLOSE_TIMEOUT of Linux' af_vsock: how long a closing side waits for the other's RST.
LINGER_TIMEOUT: Final = 8.0
MAX_LINGERING: Final = 4096
# Ports that the host's ends of connections get, far from those that services have.
_FIRST_PORT: Final = 0x4000_0000
_PORTS: Final = 0xFFFF_FFFF - _FIRST_PORT

_BLIND: Final = (
    "the guest says that it added buffers, and there are none: does QEMU's memory backend have share=on? "
    "Without it this process does not see the guest's RAM"
)
_RECEIVE, _SEND = 0, 1  # SHUT_RD and SHUT_WR of shutdown(2)


class Host(Protocol):
    """What the device needs of its surroundings."""

    def dial(self, port: int) -> Stream | None:
        """A connected socket to what listens on this port of the host, or None."""
        ...

    def adopt(self, connection: Connection) -> None:
        """Watch the socket of a connection that the guest made."""
        ...

    def watch_writable(self, connection: Connection, wanted: bool) -> None:
        """Whether `Device.writable` is to be called when the socket takes bytes again."""
        ...

    def drop(self, connection: Connection) -> None:
        """Close the connection's socket."""
        ...

    def log(self, level: str, text: str) -> None:
        """One line for the operator."""
        ...


class Device:
    """A virtio-vsock device for one guest.

    `hold_timeout` (s) bounds how long a host's connection waits for the guest; `clock` reads seconds.
    """

    def __init__(
        self,
        guest_cid: int,
        host: Host,
        *,
        clock: Callable[[], float],
        hold_timeout: float,
        max_connections: int,
    ) -> None:
        self.cid = guest_cid
        self.running = False
        self.tx_pending = False
        self._host = host
        self._clock = clock
        self._hold_timeout = hold_timeout
        self._max_connections = max_connections
        self._rx: Ring | None = None
        self._tx: Ring | None = None
        self._connections: dict[int, Connection] = {}
        self._sockets = 0
        self._promised = 0
        # Packets that wait for RX buffers: headers of RSTs, and operations whose header is made when they leave.
        self._answers: deque[bytes | tuple[Connection, int]] = deque()
        # Connections whose socket has bytes and whose guest has room.
        self._ready: deque[Connection] = deque()
        # Deadlines; the timeout is the same for all, so the oldest comes first.
        self._waiting: dict[Connection, float] = {}
        self._lingering: dict[Connection, float] = {}
        # Random, because a guest restored from a template, or whose backend was restarted, may still hold connections
        # with the ports of the last one.
        self._last_port = int.from_bytes(os.urandom(4), "little") % _PORTS
        self._rules_broken = 0
        self._blind = False

    def __len__(self) -> int:
        return len(self._connections)

    # Life of the rings.

    def start(self, rx: Ring, tx: Ring) -> None:
        """Both rings run."""
        self._rx, self._tx = rx, tx
        self.running = self.tx_pending = True
        rx.suppress_kicks()
        for connection in self._waiting:
            self._request(connection)

    def stop(self) -> None:
        """The rings stop; connections stay, the guest may only be paused."""
        self.running = False
        self._rx = self._tx = None

    def forget_guest(self) -> None:
        """Another driver will come, which knows nothing of these connections: keep only those that wait for one."""
        self._answers.clear()
        for connection in list(self._connections.values()):
            if connection.state is State.CONNECTING:
                connection.requested = False
            else:
                self._do(connection, connection.guest_leaves())
        self._ready.clear()

    def run(self) -> bool:
        """Move what can be moved; True where there is more to do at once. Raises RingError."""
        rx, tx = self._rx, self._tx
        if not self.running or rx is None or tx is None:
            return False
        more = self.tx_pending and self._run_tx(tx)
        if self._answers or self._ready:
            more |= self._run_rx(rx)
            # Room for answers may have been what TX waited for.
            more |= self.tx_pending and len(self._answers) < MAX_ANSWERS
        return more

    # What the host's sockets do.

    def connect(self, stream: Stream, guest_port: int, *, announce: bool = False) -> Connection | None:
        """Ask the guest for a connection, as soon as it is there; None where there are too many."""
        if self._sockets >= self._max_connections or not 0 <= guest_port < packet.PORT_ANY:
            return None
        host_port = self._last_port
        while True:
            host_port = (host_port + 1) % _PORTS
            if (host_port + _FIRST_PORT) << 32 | guest_port not in self._connections:
                break
        self._last_port = host_port
        connection = self._add(stream, host_port + _FIRST_PORT, guest_port, announce=announce)
        self._waiting[connection] = self._clock() + self._hold_timeout
        if self.running:
            self._request(connection)
        return connection

    def readable(self, connection: Connection) -> None:
        """The socket has bytes, or ended."""
        connection.readable = True
        if not connection.queued and connection.gives_data():
            self._want_rx(connection)

    def hung_up(self, connection: Connection) -> None:
        """Nobody is behind the socket any more; bytes may still be in it."""
        connection.hung_up = connection.ended = True
        if connection.gives_data():
            self.readable(connection)
        else:
            self._do(connection, connection.host_leaves())

    def writable(self, connection: Connection) -> None:
        """The socket takes bytes again."""
        backlog = connection.backlog
        if backlog and connection.stream is not None:
            try:
                count = connection.stream.send(backlog)
            except BlockingIOError:
                return
            except OSError:
                self._watch_writable(connection, False)
                self._do(connection, connection.host_refuses())
                return
            del backlog[:count]
            self._forwarded(connection, count)
        if not backlog:
            self._watch_writable(connection, False)
            self._do(connection, connection.drained())

    # Time.

    def deadline(self) -> float | None:
        """When `expire` has something to do, on `clock`; None: not by itself."""
        first = [next(iter(times.values())) for times in (self._waiting, self._lingering) if times]
        return min(first, default=None)

    def expire(self) -> None:
        """Give up on guests that did not answer in time."""
        now = self._clock()
        for times in (self._waiting, self._lingering):
            for connection in [each for each, deadline in times.items() if deadline <= now]:
                if connection.state is State.CONNECTING:
                    self._host.log(
                        "info", f"guest port {connection.guest_port} did not answer in {self._hold_timeout:g} s"
                    )
                self._do(connection, connection.abort())

    # RX: to the guest.

    def _run_rx(self, ring: Ring) -> bool:
        answers, ready = self._answers, self._ready
        for _ in range(BURST):
            if not answers and not ready:
                return False
            buffer = ring.peek()
            if buffer is None:
                if ring.allow_kicks():
                    ring.suppress_kicks()
                    continue
                return False
            head, pieces = buffer
            if answers:
                header = self._next_answer()
                if header:
                    scatter(pieces, header)
                    ring.commit(head, HEADER_SIZE)
            else:
                connection = ready.popleft()
                connection.queued = False
                self._receive(connection, ring, head, pieces)
        return True

    def rx_kick(self) -> None:
        """The guest added RX buffers; they are looked at in `run`."""
        if self._rx is not None:
            self._rx.suppress_kicks()
            if not self._rx.ever_used() and not self._blind:
                self._blind = True
                self._host.log("warning", _BLIND)

    def _next_answer(self) -> bytes:
        answer = self._answers.popleft()
        if isinstance(answer, bytes):
            return answer
        connection, operation = answer
        if operation == packet.CREDIT_UPDATE:
            connection.update_queued = False
        if connection.state is State.CLOSED:
            return b""
        flags = connection.said if operation == packet.SHUTDOWN else 0
        connection.advertised = connection.forwarded
        return HEADER.pack(HOST_CID, self.cid, connection.host_port, connection.guest_port, 0, STREAM, operation, flags,
                           connection.window, connection.forwarded)  # fmt: skip

    def _receive(self, connection: Connection, ring: Ring, head: int, pieces: list[memoryview]) -> None:
        """Fill one RX buffer from the connection's socket."""
        stream = connection.stream
        credit = connection.credit()
        if stream is None or credit <= 0 or not connection.gives_data():
            return
        first = pieces[0]
        try:
            if len(pieces) == 1 and len(first) > HEADER_SIZE:
                wanted = min(len(first) - HEADER_SIZE, credit)
                count = stream.recv_into(first[HEADER_SIZE : HEADER_SIZE + wanted])
            else:
                first = memoryview(bytearray(HEADER_SIZE))
                body = cut(pieces, HEADER_SIZE, HEADER_SIZE + credit)
                wanted = sum(map(len, body))
                if not wanted:
                    raise RingError("RX buffer without room for data")
                count = stream.recvmsg_into(body)[0]
        except BlockingIOError:
            connection.readable = False
            return
        except OSError:
            self._do(connection, connection.host_leaves())
            return
        if not count:
            connection.readable = False
            self._do(connection, connection.host_leaves() if connection.hung_up else connection.host_ends())
            return
        connection.sent(count)
        connection.advertised = connection.forwarded
        HEADER.pack_into(first, 0, HOST_CID, self.cid, connection.host_port, connection.guest_port, count, STREAM, RW,
                         0, connection.window, connection.forwarded)  # fmt: skip
        if first is not pieces[0]:
            scatter(pieces, first)
        ring.commit(head, HEADER_SIZE + count)
        # Less than wanted: the socket is empty, and its next bytes are a new event. Not so if it has ended already.
        if count < wanted and not connection.ended:
            connection.readable = False
        else:
            self._want_rx(connection)

    def _want_rx(self, connection: Connection) -> None:
        """The socket is readable: queue the connection, or ask the guest for room."""
        if connection.credit() > 0:
            connection.queued = True
            self._ready.append(connection)
        elif not connection.credit_asked and connection.state is State.OPEN:
            connection.credit_asked = True
            self._answers.append((connection, packet.CREDIT_REQUEST))

    # TX: from the guest.

    def _run_tx(self, ring: Ring) -> bool:
        ring.suppress_kicks()
        for _ in range(BURST):
            if len(self._answers) >= MAX_ANSWERS:
                return False
            buffer = ring.peek()
            if buffer is None:
                if ring.allow_kicks():
                    ring.suppress_kicks()
                    continue
                self.tx_pending = False
                return False
            head, pieces = buffer
            self._packet(pieces)
            ring.commit(head, 0)
        return True

    def _packet(self, pieces: list[memoryview]) -> None:
        first = pieces[0]
        if len(first) >= HEADER_SIZE:
            fields = HEADER.unpack_from(first)
            body = [first[HEADER_SIZE:], *pieces[1:]] if len(first) > HEADER_SIZE else pieces[1:]
        else:
            raw = b"".join(cut(pieces, 0, HEADER_SIZE))
            if len(raw) < HEADER_SIZE:
                raise RingError(f"packet of {len(raw)} bytes, shorter than its header")
            fields = HEADER.unpack(raw)
            body = cut(pieces, HEADER_SIZE, 1 << 32)
        src_cid, dst_cid, src_port, dst_port, length, kind, operation, flags, room, taken = fields
        if src_cid != self.cid:
            self._rule_broken(f"packet in the name of CID {src_cid}")
            return
        connection = (
            self._connections.get(dst_port << 32 | src_port) if dst_cid == HOST_CID and kind == STREAM else None
        )
        if connection is None:
            if operation == packet.REQUEST and dst_cid == HOST_CID and kind == STREAM:
                self._guest_connects(fields)
            elif operation != RST:
                self._answers.append(packet.reset_for(fields))
            return
        connection.peer_credit(room, taken)
        if operation == RW:
            self._guest_sends(connection, length, body)
        else:
            self._guest_says(connection, operation, flags)
        if connection.readable and not connection.queued and connection.gives_data() and connection.credit() > 0:
            connection.credit_asked = False
            self._want_rx(connection)

    def _guest_connects(self, fields: tuple[int, ...]) -> None:
        _, _, guest_port, host_port, _, _, _, _, room, taken = fields
        stream = self._host.dial(host_port) if self._sockets < self._max_connections else None
        if stream is None:
            self._answers.append(packet.reset_for(fields))
            return
        connection = self._add(stream, host_port, guest_port, announce=False)
        connection.state = State.OPEN
        connection.peer_credit(room, taken)
        self._answers.append((connection, packet.RESPONSE))
        self._host.adopt(connection)

    def _guest_says(self, connection: Connection, operation: int, flags: int) -> None:
        if operation == packet.CREDIT_UPDATE:
            return
        if operation == packet.CREDIT_REQUEST:
            self._advertise(connection)
        elif operation == RST:
            self._do(connection, connection.guest_leaves())
        elif operation == packet.SHUTDOWN:
            self._do(connection, connection.guest_shuts(flags))
        elif operation == packet.RESPONSE and connection.state is State.CONNECTING and connection.requested:
            self._guest_accepts(connection)
        else:
            self._rule_broken(f"operation {operation} on {connection}")
            self._do(connection, connection.abort())

    def _guest_accepts(self, connection: Connection) -> None:
        connection.state = State.OPEN
        self._waiting.pop(connection, None)
        if connection.announce and connection.stream is not None:
            try:
                connection.stream.send(b"OK %d\n" % connection.host_port)
            except OSError:
                self._do(connection, connection.host_refuses())
        # What came meanwhile gave its event already.
        connection.readable = True

    def _guest_sends(self, connection: Connection, length: int, body: list[memoryview]) -> None:
        if connection.state is State.CLOSING or (connection.state is State.OPEN and connection.said & packet.SHUT_RCV):
            return  # it has not heard yet that nobody listens
        present = len(body[0]) if len(body) == 1 else sum(map(len, body))
        if present > length:
            body = cut(body, 0, length)
        if connection.state is not State.OPEN or connection.heard & packet.SHUT_SEND or present < length:
            self._rule_broken(f"{length} bytes on {connection}, of {present} that the packet has")
            self._do(connection, connection.abort())
            return
        if not connection.receive(length):
            self._rule_broken(f"{length} bytes without credit on {connection}")
            self._do(connection, connection.abort())
            return
        count = 0
        if not connection.backlog and connection.stream is not None and length:
            try:
                count = connection.stream.send(body[0]) if len(body) == 1 else connection.stream.sendmsg(body)
            except BlockingIOError:
                pass
            except OSError:
                self._do(connection, connection.host_refuses())
                return
        if count < length:
            for piece in cut(body, count, length):
                connection.backlog += piece
            self._watch_writable(connection, True)
        if count:
            self._forwarded(connection, count)

    # Shared by both directions.

    def _add(self, stream: Stream, host_port: int, guest_port: int, *, announce: bool) -> Connection:
        window = WINDOW if self._promised + WINDOW <= WINDOW_BUDGET else SMALL_WINDOW
        connection = Connection(stream, host_port, guest_port, window=window, announce=announce)
        self._connections[connection.key] = connection
        self._sockets += 1
        self._promised += window
        return connection

    def _request(self, connection: Connection) -> None:
        if not connection.requested:
            connection.requested = True
            self._answers.append((connection, packet.REQUEST))

    def _forwarded(self, connection: Connection, count: int) -> None:
        if connection.forward(count) and connection.state is State.OPEN:
            self._advertise(connection)

    def _advertise(self, connection: Connection) -> None:
        if not connection.update_queued:
            connection.update_queued = True
            self._answers.append((connection, packet.CREDIT_UPDATE))

    def _watch_writable(self, connection: Connection, wanted: bool) -> None:
        if connection.wants_write != wanted:
            connection.wants_write = wanted
            self._host.watch_writable(connection, wanted)

    def _rule_broken(self, what: str) -> None:
        # A guest must not be able to fill the host's log.
        self._rules_broken += 1
        if self._rules_broken <= 10:
            last = "; further ones are not logged" if self._rules_broken == 10 else ""
            self._host.log("warning", f"guest broke a rule of virtio-vsock: {what}{last}")

    def _do(self, connection: Connection, todo: Do) -> None:
        if not todo:
            return
        for action, how in ((Do.STOP_WRITING, _SEND), (Do.STOP_READING, _RECEIVE)):
            if todo & action and connection.stream is not None:
                with contextlib.suppress(OSError):  # its other end is gone: there will be an event
                    connection.stream.shutdown(how)
        if todo & Do.SHUTDOWN:
            self._answers.append((connection, packet.SHUTDOWN))
        if todo & Do.RESET:
            self._answers.append(HEADER.pack(HOST_CID, self.cid, connection.host_port, connection.guest_port, 0, STREAM,
                                             RST, 0, 0, 0))  # fmt: skip
        if todo & Do.FORGET:
            self._connections.pop(connection.key, None)
            self._lingering.pop(connection, None)
            self._waiting.pop(connection, None)
        if todo & Do.CLOSE and connection.stream is not None:
            self._host.drop(connection)
            connection.stream = None
            self._sockets -= 1
            self._promised -= connection.window
        if todo & Do.LINGER:
            self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        self._lingering[connection] = self._clock() + LINGER_TIMEOUT
        if len(self._lingering) > MAX_LINGERING:
            oldest = next(iter(self._lingering))
            self._do(oldest, oldest.abort())
