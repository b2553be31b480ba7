"""One stream between the guest and a socket of the host: its credit, and how it ends.

Nothing here does I/O: methods say what happened and return what is to be done (`Do`). Credit is virtio 1.2, 5.10.6.3
("Buffer Space Management"), with free-running 32-bit counters; closing is 5.10.6.5 ("Stream Sockets").
"""

from enum import Enum, IntFlag
from typing import Final, Protocol

from kata_runtime.hypervisor.vsock.device.packet import SHUT_BOTH, SHUT_RCV, SHUT_SEND

Buffer = bytes | bytearray | memoryview

_MASK: Final = 0xFFFF_FFFF


class Stream(Protocol):
    """The host's end: what is used of a non-blocking stream socket."""

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def recvmsg_into(self, buffers: list[memoryview], /) -> tuple[int, list[tuple[int, int, bytes]], int, object]: ...

    def send(self, data: Buffer, /) -> int: ...

    def sendmsg(self, buffers: list[memoryview], /) -> int: ...

    def shutdown(self, how: int, /) -> None: ...


class State(Enum):
    """Where a connection stands."""

    CONNECTING = "waits for the guest's RESPONSE"
    OPEN = "data may flow"
    DRAINING = "the guest is done; what it sent is still on its way to the host's socket"
    CLOSING = "the host's socket is gone; the guest was told and has not answered yet"
    CLOSED = "over"


class Do(IntFlag):
    """What the device has to do, in this order."""

    NOTHING = 0
    STOP_WRITING = 1  # shut the host's socket down for writing
    STOP_READING = 2  # and for reading
    SHUTDOWN = 4  # tell the guest `said`
    RESET = 8  # send RST
    FORGET = 16  # the guest may use this pair of ports again
    CLOSE = 32  # close the host's socket
    LINGER = 64  # bound the wait for the guest's answer


class Connection:
    """`window` is the room (bytes) that the guest may fill before the host's socket has taken anything.

    `backlog` is what the guest sent and the host's socket would not take yet.
    """

    __slots__ = (
        "_peer_forwarded", "_peer_room", "_received", "_sent", "advertised", "announce", "backlog", "credit_asked",
        "ended", "forwarded", "guest_port", "heard", "host_port", "hung_up", "queued", "readable", "requested", "said",
        "state", "stream", "update_queued", "wants_write", "window",
    )  # fmt: skip

    def __init__(
        self, stream: Stream | None, host_port: int, guest_port: int, *, window: int, announce: bool = False
    ) -> None:
        self.stream = stream
        self.host_port = host_port
        self.guest_port = guest_port
        self.window = window
        self.announce = announce  # whether the host's socket is told the port when the guest accepts
        self.state = State.CONNECTING
        self.heard = 0  # SHUTDOWN flags of the guest, and ours
        self.said = 0
        self.backlog = bytearray()
        # Guest to host.
        self._received = 0
        self.forwarded = 0
        self.advertised = 0
        self.update_queued = False
        # Host to guest.
        self._sent = 0
        self._peer_room = 0
        self._peer_forwarded = 0
        self.credit_asked = False
        # The device's notes about the socket and its queues.
        self.readable = False
        self.ended = False  # data may be followed by an end that gives no event of its own
        self.hung_up = False
        self.queued = False
        self.requested = False
        self.wants_write = False

    def __repr__(self) -> str:
        return f"<Connection host {self.host_port} guest {self.guest_port} {self.state.name}>"

    @property
    def key(self) -> int:
        """The pair of ports as one number."""
        return self.host_port << 32 | self.guest_port

    # Credit, host to guest.

    def credit(self) -> int:
        """Bytes that the guest has room for. Negative where it shrank its buffer, or lies."""
        return self._peer_room - ((self._sent - self._peer_forwarded) & _MASK)

    def peer_credit(self, room: int, forwarded: int) -> None:
        """Every packet of the guest tells its buffer's size and what its application has taken."""
        self._peer_room = room
        self._peer_forwarded = forwarded

    def sent(self, count: int) -> None:
        """`count` bytes went to the guest."""
        self._sent = (self._sent + count) & _MASK

    # Credit, guest to host.

    def receive(self, count: int) -> bool:
        """`count` bytes came from the guest; False where it had no credit for them."""
        self._received = (self._received + count) & _MASK
        return (self._received - self.forwarded) & _MASK <= self.window

    def forward(self, count: int) -> bool:
        """The host's socket took `count` bytes; True when it is time to tell the guest."""
        self.forwarded = (self.forwarded + count) & _MASK
        # A quarter: often enough to keep the guest sending, seldom enough to cost nothing.
        return (self.forwarded - self.advertised) & _MASK >= self.window >> 2

    # Ends.

    def takes_data(self) -> bool:
        """Whether bytes from the guest still have somewhere to go."""
        return self.state is State.OPEN and not self.said & SHUT_RCV

    def gives_data(self) -> bool:
        """Whether the guest still wants bytes from the host's socket, and that has some."""
        return self.state is State.OPEN and not (self.heard & SHUT_RCV or self.said & SHUT_SEND)

    def guest_shuts(self, flags: int) -> Do:
        """SHUTDOWN from the guest."""
        self.heard |= flags & SHUT_BOTH
        if self.state is State.CONNECTING or self.heard == SHUT_BOTH:
            # An RST at once: until it comes, close() in a Linux guest lingers for 8 s.
            return Do.RESET | self.guest_leaves()
        if self.state is not State.OPEN:
            return Do.NOTHING
        todo = Do.NOTHING
        if flags & SHUT_SEND and not self.backlog:
            todo |= Do.STOP_WRITING
        if flags & SHUT_RCV:
            todo |= Do.STOP_READING
        return todo

    def guest_leaves(self) -> Do:
        """RST from the guest, or its part is over: what it sent before still arrives."""
        if self.state is State.OPEN and self.backlog:
            self.state = State.DRAINING
            return Do.FORGET | Do.STOP_READING
        todo = Do.FORGET if self.state is State.CLOSING else Do.FORGET | Do.CLOSE
        self.state = State.CLOSED
        return todo

    def abort(self) -> Do:
        """The guest broke a rule of this connection, or did not answer in time."""
        todo = Do.FORGET
        if self.state is not State.CLOSING:
            todo |= Do.CLOSE
        if self.state is not State.CONNECTING or self.requested:
            todo |= Do.RESET
        self.state = State.CLOSED
        return todo

    def drained(self) -> Do:
        """The backlog became empty."""
        if self.state is State.DRAINING:
            self.state = State.CLOSED
            return Do.CLOSE
        return Do.STOP_WRITING if self.state is State.OPEN and self.heard & SHUT_SEND else Do.NOTHING

    def host_ends(self) -> Do:
        """End of file on the host's socket: it will send no more, but may still receive."""
        return self._say(SHUT_SEND)

    def host_refuses(self) -> Do:
        """The host's socket takes no more bytes."""
        self.backlog.clear()
        if self.state is State.DRAINING:
            return self.host_leaves()
        return self._say(SHUT_RCV)

    def host_leaves(self) -> Do:
        """Nobody is behind the host's socket any more, and all it sent has been read."""
        self.backlog.clear()
        match self.state:
            case State.OPEN:
                return self._say(SHUT_BOTH)
            case State.CONNECTING:
                self.state = State.CLOSED
                return Do.CLOSE | Do.FORGET | (Do.RESET if self.requested else Do.NOTHING)
            case State.DRAINING:
                self.state = State.CLOSED
                return Do.CLOSE
        return Do.NOTHING

    def _say(self, flags: int) -> Do:
        if self.state is not State.OPEN or self.said | flags == self.said:
            return Do.NOTHING
        self.said |= flags
        if self.said != SHUT_BOTH:
            return Do.SHUTDOWN
        self.state = State.CLOSING
        return Do.SHUTDOWN | Do.CLOSE | Do.LINGER
