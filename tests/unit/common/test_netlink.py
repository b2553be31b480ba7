"""Netlink's frames, whatever comes, and the kernel's own answers (no root needed to ask what is there)."""

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_common import netlink
from kata_common.netlink import Netlink, attribute, attributes, nested, number, text

HEADER = struct.Struct("=IHHII")


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=70)))
def test_attributes_there_and_back(wanted: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in wanted.items())
    assert len(data) % 4 == 0
    assert attributes(data) == wanted
    assert attributes(nested(5, data)) == {5: data}


@given(st.binary(max_size=200))
def test_whatever_comes_is_taken_apart(data: bytes) -> None:
    for value in attributes(data).values():
        assert value in data


def test_values() -> None:
    assert (number(None), number(attributes(attribute(1, 1500))[1])) == (0, 1500)
    assert (text(None), text(attributes(attribute(1, "eth0"))[1])) == ("", "eth0")
    assert number(attributes(attribute(1, -1))[1]) == 0xFFFF_FFFF


def test_the_kernel_answers() -> None:
    with Netlink() as kernel:
        links = kernel.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0))
        names = {text(attributes(body[netlink.LINK.size :]).get(netlink.IFLA_IFNAME)) for body in links}
        assert names == {name for _, name in socket.if_nameindex()}
        with pytest.raises(OSError, match="No such device") as missing:
            kernel.change(netlink.NEWLINK, netlink.LINK.pack(0, 0, 0x7FFF_0000, 0, 0))
        assert missing.value.errno in (errno.ENODEV, errno.EPERM)
        # The socket is as good as before.
        assert len(kernel.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0))) == len(links)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Netlink, socket.socket]]:
    """A socket whose other end the test has."""
    with Netlink() as client:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client._socket.close()
        client._socket = ours
        with theirs:
            yield client, theirs


def message(kind: int, body: bytes = b"", *, flags: int = 0, sequence: int = 1) -> bytes:
    whole = HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body
    return whole + bytes(-len(whole) % 4)


def test_several_messages_in_one_and_answers_to_others(told: tuple[Netlink, socket.socket]) -> None:
    client, kernel = told
    kernel.send(message(16, b"old", sequence=9) + message(16, b"one!!") + message(16, b"two"))
    kernel.send(message(16, b"three") + message(3))
    assert client.dump(18, b"") == [b"one!!", b"two", b"three"]
    length, kind, flags, sequence, _ = HEADER.unpack(kernel.recv(100))
    assert (length, kind, flags, sequence) == (16, 18, 0x301, 1)


def test_a_listing_that_changed_meanwhile_is_asked_for_again(told: tuple[Netlink, socket.socket]) -> None:
    client, kernel = told
    kernel.send(message(16, b"half") + message(3, flags=0x10))
    kernel.send(message(16, b"whole", sequence=2) + message(3, sequence=2))
    assert client.dump(18, b"") == [b"whole"]


def test_a_listing_that_always_changes(told: tuple[Netlink, socket.socket]) -> None:
    client, kernel = told
    for sequence in range(1, 6):
        kernel.send(message(3, flags=0x10, sequence=sequence))
    with pytest.raises(InterruptedError, match="changed meanwhile"):
        client.dump(18, b"")


def test_an_error_is_an_oserror(told: tuple[Netlink, socket.socket]) -> None:
    client, kernel = told
    kernel.send(message(2, struct.pack("=i", -errno.EEXIST)))
    with pytest.raises(FileExistsError, match=os.strerror(errno.EEXIST)):
        client.change(16, b"")
    kernel.send(message(2, struct.pack("=i", 0), sequence=2))
    client.change(16, b"")


def test_a_kernel_that_says_nothing(told: tuple[Netlink, socket.socket]) -> None:
    client, _ = told
    client._socket.settimeout(0.01)
    with pytest.raises(TimeoutError):
        client.dump(18, b"")
