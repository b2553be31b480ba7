"""The vsock backend's pure parts, by tables: how a connection ends, credit, rings, command line."""

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from kata_runtime.hypervisor.vsock.device import __main__ as command
from kata_runtime.hypervisor.vsock.device import message as m
from kata_runtime.hypervisor.vsock.device.connection import Connection, Do, State
from kata_runtime.hypervisor.vsock.device.device import MAX_ANSWERS, WINDOW, Device
from kata_runtime.hypervisor.vsock.device.memory import GuestMemory, Region
from kata_runtime.hypervisor.vsock.device.packet import HEADER, reset_for
from kata_runtime.hypervisor.vsock.device.ring import Ring, RingError
from kata_runtime.hypervisor.vsock.device.settings import Settings
from support.vsock_frontend import GUEST_BASE, INDIRECT, NEXT, RAM_SIZE, USER_BASE, WRITE, Frontend

RCV, SEND, BOTH = 1, 2, 3


def connection(state: State, *, backlog: bytes = b"", heard: int = 0, said: int = 0, asked: bool = True) -> Connection:
    made = Connection(None, 1, 2, window=WINDOW)
    made.state = state
    made.backlog += backlog
    made.heard, made.said, made.requested = heard, said, asked
    return made


# What is, what happens, what is to be done, what is then.
ENDS = {
    "guest stops sending": (
        connection(State.OPEN), "guest_shuts", [SEND], Do.STOP_WRITING, State.OPEN),
    "guest stops sending, host is slow": (
        connection(State.OPEN, backlog=b"x"), "guest_shuts", [SEND], Do.NOTHING, State.OPEN),
    "and the host has caught up": (
        connection(State.OPEN, heard=SEND), "drained", [], Do.STOP_WRITING, State.OPEN),
    "host has caught up in between": (
        connection(State.OPEN), "drained", [], Do.NOTHING, State.OPEN),
    "guest stops receiving": (
        connection(State.OPEN), "guest_shuts", [RCV], Do.STOP_READING, State.OPEN),
    "guest closes": (
        connection(State.OPEN), "guest_shuts", [BOTH], Do.RESET | Do.FORGET | Do.CLOSE, State.CLOSED),
    "guest closes in two steps": (
        connection(State.OPEN, heard=SEND), "guest_shuts", [RCV], Do.RESET | Do.FORGET | Do.CLOSE, State.CLOSED),
    "guest closes, host is slow": (
        connection(State.OPEN, backlog=b"x"), "guest_shuts", [BOTH],
        Do.RESET | Do.FORGET | Do.STOP_READING, State.DRAINING),
    "guest resets, host is slow": (
        connection(State.OPEN, backlog=b"x"), "guest_leaves", [], Do.FORGET | Do.STOP_READING, State.DRAINING),
    "and then has everything": (
        connection(State.DRAINING), "drained", [], Do.CLOSE, State.CLOSED),
    "and then leaves": (
        connection(State.DRAINING, backlog=b"x"), "host_leaves", [], Do.CLOSE, State.CLOSED),
    "and then refuses": (
        connection(State.DRAINING, backlog=b"x"), "host_refuses", [], Do.CLOSE, State.CLOSED),
    "host stops sending": (
        connection(State.OPEN), "host_ends", [], Do.SHUTDOWN, State.OPEN),
    "host stops receiving": (
        connection(State.OPEN, backlog=b"x"), "host_refuses", [], Do.SHUTDOWN, State.OPEN),
    "host stops receiving after sending": (
        connection(State.OPEN, said=SEND), "host_refuses", [], Do.SHUTDOWN | Do.CLOSE | Do.LINGER, State.CLOSING),
    "host leaves": (
        connection(State.OPEN, backlog=b"x"), "host_leaves", [], Do.SHUTDOWN | Do.CLOSE | Do.LINGER, State.CLOSING),
    "host leaves twice": (
        connection(State.CLOSING, said=BOTH), "host_leaves", [], Do.NOTHING, State.CLOSING),
    "guest answers with a reset": (
        connection(State.CLOSING, said=BOTH), "guest_leaves", [], Do.FORGET, State.CLOSED),
    "guest answers with its own end": (
        connection(State.CLOSING, said=BOTH), "guest_shuts", [BOTH], Do.RESET | Do.FORGET, State.CLOSED),
    "guest answers by halves": (
        connection(State.CLOSING, said=BOTH), "guest_shuts", [SEND], Do.NOTHING, State.CLOSING),
    "guest does not answer": (
        connection(State.CLOSING, said=BOTH), "abort", [], Do.RESET | Do.FORGET, State.CLOSED),
    "guest refuses": (
        connection(State.CONNECTING), "guest_leaves", [], Do.FORGET | Do.CLOSE, State.CLOSED),
    "guest refuses by shutdown": (
        connection(State.CONNECTING), "guest_shuts", [SEND], Do.RESET | Do.FORGET | Do.CLOSE, State.CLOSED),
    "host does not wait": (
        connection(State.CONNECTING), "host_leaves", [], Do.RESET | Do.FORGET | Do.CLOSE, State.CLOSED),
    "host does not wait for a guest to come": (
        connection(State.CONNECTING, asked=False), "host_leaves", [], Do.FORGET | Do.CLOSE, State.CLOSED),
    "no guest comes": (
        connection(State.CONNECTING, asked=False), "abort", [], Do.FORGET | Do.CLOSE, State.CLOSED),
    "guest cheats": (
        connection(State.OPEN, backlog=b"x"), "abort", [], Do.RESET | Do.FORGET | Do.CLOSE, State.CLOSED),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_ends(name: str) -> None:
    subject, event, arguments, todo, state = ENDS[name]
    assert getattr(subject, event)(*arguments) == todo
    assert subject.state is state
    if event in ("host_refuses", "host_leaves"):
        assert not subject.backlog


def test_credit_of_the_guest_wraps_and_may_be_negative() -> None:
    subject = connection(State.OPEN)
    subject.peer_credit(100, 0)
    assert subject.credit() == 100
    subject.sent(100)
    assert subject.credit() == 0
    subject.peer_credit(60, 20)
    assert subject.credit() == -20
    subject.sent(2**32 - 150)
    subject.peer_credit(100, 2**32 - 70)
    assert subject.credit() == 80
    subject.sent(60)
    assert subject.credit() == 20
    subject.peer_credit(100, 10)
    assert subject.credit() == 100


def test_credit_of_the_host() -> None:
    subject = connection(State.OPEN)
    assert subject.receive(WINDOW)
    assert not subject.forward(WINDOW // 4 - 1)
    assert subject.forward(1)
    subject.advertised = subject.forwarded
    assert not subject.forward(1)
    assert subject.receive(WINDOW // 4 + 1)
    assert not subject.receive(1)


def test_reset_comes_from_where_the_packet_went() -> None:
    fields = HEADER.unpack(HEADER.pack(3, 77, 5, 6, 7, 2, 1, 8, 9, 10))
    assert HEADER.unpack(reset_for(fields)) == (77, 3, 6, 5, 0, 2, 3, 0, 0, 0)
    assert HEADER.size == 44


@pytest.fixture
def guest() -> Iterator[Frontend]:
    ours, theirs = socket.socketpair()
    frontend = Frontend(ours, ring_size=8)
    yield frontend
    frontend.close()
    theirs.close()


@pytest.fixture
def memory(guest: Frontend) -> Iterator[GuestMemory]:
    """Two neighbouring regions of one file, as after memory was hotplugged."""
    half = RAM_SIZE // 2
    regions = [Region(GUEST_BASE, half, USER_BASE, 0), Region(GUEST_BASE + half, half, USER_BASE + half, half)]
    mapped = GuestMemory.map(regions, [guest.memfd] * 2)
    yield mapped
    mapped.close()


def ring_of(guest: Frontend, memory: GuestMemory, *, writable: bool = False, base: int = 0) -> Ring:
    queue = guest.rx if writable else guest.tx
    addresses = (USER_BASE + queue.descriptors, USER_BASE + queue.available, USER_BASE + queue.used)
    return Ring(memory, queue.size, addresses, base, writable=writable)


def test_ring_goes_round(guest: Frontend, memory: GuestMemory) -> None:
    struct.pack_into("<H", guest.ram, guest.tx.used + 2, 65530)
    guest.tx.added = guest.tx.seen = 65530
    guest.tx.publish(65530)
    ring = ring_of(guest, memory, base=65530)
    for number in range(20):
        assert ring.peek() is None
        head = guest.tx.add([(GUEST_BASE + number, 1), (GUEST_BASE + 100, 50)], 0)
        found = ring.peek()
        assert found is not None
        assert found[0] == head
        assert [len(piece) for piece in found[1]] == [1, 50]
        assert ring.peek() == found  # until it is committed
        ring.commit(head, number)
        assert guest.tx.take_used() == (head, number)
        del found
    assert ring.next == (65530 + 20) & 0xFFFF
    ring.release()


def test_buffer_across_regions(guest: Frontend, memory: GuestMemory) -> None:
    ring = ring_of(guest, memory)
    middle = GUEST_BASE + RAM_SIZE // 2
    guest.ram[RAM_SIZE // 2 - 3 : RAM_SIZE // 2 + 3] = b"abcdef"
    guest.tx.add([(middle - 3, 6)], 0)
    found = ring.peek()
    assert found is not None
    assert [bytes(piece) for piece in found[1]] == [b"abc", b"def"]
    ring.release()


def test_notifications(guest: Frontend, memory: GuestMemory) -> None:
    ring = ring_of(guest, memory)
    assert not ring.take_signal()
    for flag, wanted in ((0, True), (1, False)):
        struct.pack_into("<H", guest.ram, guest.tx.available, flag)
        head = guest.tx.add([(GUEST_BASE, 1)], 0)
        ring.commit(head, 0)
        assert ring.take_signal() is wanted
        assert not ring.take_signal()
    ring.suppress_kicks()
    assert not guest.tx.wants_kick()
    assert not ring.allow_kicks()
    assert guest.tx.wants_kick()
    ring.suppress_kicks()
    guest.tx.add([(GUEST_BASE, 1)], 0)
    assert ring.allow_kicks()
    ring.release()


BROKEN = {
    "address": ((0, 1, 0, 0), "not in guest RAM"),
    "wraps": ((2**64 - 1, 2, 0, 0), "not in guest RAM"),
    "loop": ((GUEST_BASE, 1, NEXT, 0), "loops"),
    "next": ((GUEST_BASE, 1, NEXT, 8), "descriptor 8 in a queue of 8"),
    "indirect": ((GUEST_BASE, 16, INDIRECT, 0), "indirect"),
    "direction": ((GUEST_BASE, 16, WRITE, 0), "direction"),
    "empty": ((0, 0, 0, 0), "no bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_descriptor(guest: Frontend, memory: GuestMemory, name: str) -> None:
    descriptor, message = BROKEN[name]
    ring = ring_of(guest, memory)
    guest.tx.descriptor(0, *descriptor)
    guest.tx.offer(0)
    with pytest.raises(RingError, match=message):
        ring.peek()
    ring.release()


def test_memory_is_given_back(guest: Frontend, memory: GuestMemory) -> None:
    ring = ring_of(guest, memory)
    second = GuestMemory.map([Region(GUEST_BASE, RAM_SIZE, USER_BASE, 0)], [guest.memfd])
    ring.release()
    ring.bind(second)
    memory.close()
    assert ring.peek() is None
    ring.release()
    second.close()
    with pytest.raises(m.FrontendError, match="can't be mapped"):
        GuestMemory.map([Region(0, RAM_SIZE + 1, 0, 0)], [guest.memfd])


class NoHost:
    """A host without sockets."""

    def __init__(self) -> None:
        self.dropped: list[Connection] = []
        self.lines: list[str] = []

    def dial(self, port: int) -> None:
        return None

    def adopt(self, connection: Connection) -> None:
        raise AssertionError(connection)

    def watch_writable(self, connection: Connection, wanted: bool) -> None:
        raise AssertionError(connection)

    def drop(self, connection: Connection) -> None:
        self.dropped.append(connection)

    def log(self, level: str, text: str) -> None:
        self.lines.append(text)


class DeadStream:
    """A socket that is not used."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


def test_device_holds_for_a_bounded_time_and_number() -> None:
    now = [100.0]
    host = NoHost()
    device = Device(3, host, clock=lambda: now[0], hold_timeout=5, max_connections=3)
    assert device.deadline() is None
    stream: Any = DeadStream()
    made = [device.connect(stream, 1024) for _ in range(4)]
    assert made[3] is None
    assert device.deadline() == 105
    assert device.connect(stream, 2**32 - 1) is None
    now[0] = 105
    device.expire()
    assert len(device) == 0
    assert len(host.dropped) == 3
    assert device.deadline() is None
    assert device.connect(stream, 1024) is not None
    assert host.lines == ["guest port 1024 did not answer in 5 s"] * 3
    assert MAX_ANSWERS >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one argument is needed"),
        (["{}", "{}"], "one argument is needed"),
        (["--vhost-fd"], "the settings are not JSON"),
        (["[" * 100_000], "the settings are not JSON"),
        (["[]"], "the settings are not a JSON object"),
        (["{}"], "guest_cid is missing"),
        (['{"guest_cid": 3}'], "vhost_fd is missing"),
    ],
)
def test_command_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(words, message, capsys)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"vhost_fd": "x"}, "vhost_fd can't be 'x'"),
        ({"vhost_fd": True}, "vhost_fd can't be 'True'"),
        ({"vhost_fd": 99999}, "fd 99999 is no socket: Bad file descriptor"),
        ({"guest_cid": 2}, "guest_cid can't be '2'"),
        ({"guest_cid": 3.0}, "guest_cid can't be '3.0'"),
        ({"what": 1}, "there is no setting 'what'"),
        ({"hybrid_fd": 1}, "belong together"),
        ({"uds_path": 5}, "uds_path can't be '5'"),
        ({"uds_path": "x\0"}, "uds_path can't be"),
        ({"uds_path": "x" * 97}, "longer than 96 bytes"),
        ({"forwards": 1024}, "forwards can't be '1024'"),
        ({"forwards": [1024]}, "forwards can't be '1024'"),
        ({"forwards": [[1024, "x"]]}, "forwards can't be"),
        ({"forwards": [[1024, -1]]}, "forwards can't be '-1'"),
        ({"user": [0, 5]}, "user can't be '0'"),
        ({"user": 5}, "user can't be '5'"),
        ({"hold_timeout": 0}, "hold_timeout can't be '0'"),
        ({"hold_timeout": float("nan")}, "hold_timeout can't be 'nan'"),
        ({"hold_timeout": None}, "hold_timeout can't be 'None'"),
        ({"log_level": "loud"}, "log_level can't be 'loud'"),
        ({"log_level": ["x"]}, "log_level can't be"),
    ],
)
def test_settings(setting: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused([json.dumps({"vhost_fd": 0, "guest_cid": 3} | setting)], message, capsys)


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert said.startswith("vsock backend: error: ")


def test_settings_arrive_as_they_are() -> None:
    settings = Settings(4, 5, hybrid_fd=6, uds_path="/a\udcff/b", forwards=((1024, 7), (1, 8)), user=(9, 10))
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_json(Settings(4, 5).to_json()) == Settings(4, 5)


def test_settings_name_the_right_sockets(capsys: pytest.CaptureFixture[str]) -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket() as tcp:
        base = Settings(left.fileno(), 3)
        refused(
            [base._replace(hybrid_fd=right.fileno(), uds_path="/x").to_json()],
            "is not a listening unix stream socket",
            capsys,
        )
        refused([base._replace(forwards=((1, left.fileno()),)).to_json()], "is given twice", capsys)
        refused([base._replace(vhost_fd=tcp.fileno()).to_json()], "is not a connected unix stream socket", capsys)
