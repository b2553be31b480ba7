"""What the agent asks of the kernel's rtnetlink: links, addresses, routes, neighbours.

Four kinds of request, written by hand: importing pyroute2's messages alone took 0.3 to 0.4 s in an emulated guest
(docs/decisions/0010). Layouts and numbers: netlink(7), rtnetlink(7), linux/if_link.h, linux/if_addr.h,
linux/rtnetlink.h, linux/neighbour.h.
"""

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from kata_agent.errors import InvalidError

__all__ = ["IFF_NOARP", "Hop", "Link", "Rtnetlink", "packed", "packed_mac"]

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE, _REPLACE = 0x1, 0x4, 0x300, 0x400, 0x200, 0x100
_NEWLINK, _GETLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH = 16, 18, 20, 24, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
# No duplicate address detection: the host's network has given the address to this pod. No route of the kernel's own
# making: those of the pod's namespace come one by one.
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_NDA_DST, _NDA_LLADDR = 1, 2
_IFF_UP: Final = 1
IFF_NOARP: Final = 0x80
_RTMGRP_LINK: Final = 1
_BUFFER: Final = 1 << 16
# Seconds; the kernel answers at once.
_TIMEOUT: Final = 5.0


class Link(NamedTuple):
    """An interface of this network namespace; `mac` is b"" where it has none."""

    number: int
    name: str
    mac: bytes


class Hop(NamedTuple):
    """A route, addresses as bytes: empty where there is none, as the default route's destination."""

    destination: bytes
    prefix: int
    gateway: bytes
    source: bytes
    scope: int
    protocol: int
    flags: int
    priority: int


class Rtnetlink:
    """A socket to the kernel. With `events` it is told of changes of links instead, and `fileno` becomes readable.

    Every request raises OSError with the kernel's errno.
    """

    def __init__(self, *, events: bool = False) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        if events:
            self._socket.bind((0, _RTMGRP_LINK))
            self._socket.setblocking(False)
        else:
            self._socket.settimeout(_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Take what has been told; what it was doesn't matter (and ENOBUFS says that it was a lot)."""
        try:
            while self._socket.recv(_BUFFER):
                pass
        except OSError:
            pass

    def links(self) -> list[Link]:
        """All interfaces."""
        found = []
        for kind, body in self._request(_GETLINK, _DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
            if kind == _NEWLINK:
                (index,) = struct.unpack_from("=i", body, 4)
                attributes = dict(_attributes(body[16:]))
                name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
                found.append(Link(index, name, attributes.get(_IFLA_ADDRESS, b"")))
        return found

    def rename(self, index: int, name: str) -> None:
        """Give a link that is down another name."""
        self._change(_NEWLINK, 0, _link(index), _attribute(_IFLA_IFNAME, name.encode() + b"\0"))

    def set_link(self, index: int, *, up: bool, mtu: int = 0, flags: int = 0) -> None:
        """Bring a link up or down; `mtu` 0 leaves it as it is, `flags` are further IFF_* to set."""
        body = _link(index, (_IFF_UP if up else 0) | flags, _IFF_UP | flags)
        self._change(_NEWLINK, 0, body, _attribute(_IFLA_MTU, struct.pack("=I", mtu)) if mtu else b"")

    def add_address(self, index: int, family: int, address: bytes, prefix: int) -> None:
        """Add an address, at once usable; one that is there stays."""
        flags = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE
        attributes = _attribute(_IFA_LOCAL, address) + _attribute(_IFA_ADDRESS, address)
        attributes += _attribute(_IFA_FLAGS, struct.pack("=I", flags))
        body = struct.pack("=BBBBi", family, prefix, flags & 0xFF, 0, index)
        self._change(_NEWADDR, _CREATE | _REPLACE, body, attributes)

    def add_route(self, index: int, family: int, hop: Hop) -> None:
        """Add a unicast route of the main table. Raises FileExistsError where it is there."""
        numbers = (family, hop.prefix, 0, 0, _RT_TABLE_MAIN, hop.protocol, hop.scope, _RTN_UNICAST, hop.flags)
        attributes = _attribute(_RTA_OIF, struct.pack("=i", index))
        for kind, value in ((_RTA_DST, hop.destination), (_RTA_GATEWAY, hop.gateway), (_RTA_PREFSRC, hop.source)):
            attributes += _attribute(kind, value) if value else b""
        attributes += _attribute(_RTA_PRIORITY, struct.pack("=I", hop.priority)) if hop.priority else b""
        body = struct.pack("=8BI", *numbers)
        self._change(_NEWROUTE, _CREATE | _EXCLUSIVE, body, attributes)

    def add_neighbour(self, index: int, family: int, address: bytes, mac: bytes, state: int, flags: int) -> None:
        """Add a neighbour, or change one that is there."""
        body = struct.pack("=BxxxiHBB", family, index, state, flags, 0)
        attributes = _attribute(_NDA_DST, address) + _attribute(_NDA_LLADDR, mac)
        self._change(_NEWNEIGH, _CREATE | _REPLACE, body, attributes)

    def _change(self, kind: int, flags: int, body: bytes, attributes: bytes) -> None:
        for _ in self._request(kind, _ACK | flags, body + attributes):
            pass

    def _request(self, kind: int, flags: int, content: bytes) -> Iterator[tuple[int, bytes]]:
        """Send a request; types and bodies of the messages up to the one that ends the answer."""
        self._sequence += 1
        self._socket.send(
            _HEADER.pack(_HEADER.size + len(content), kind, _REQUEST | flags, self._sequence, 0) + content
        )
        while True:
            data = memoryview(self._socket.recv(_BUFFER))
            while len(data) >= _HEADER.size:
                length, answer, _, sequence, _ = _HEADER.unpack_from(data)
                body = bytes(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if answer == _NLMSG_DONE:
                    return
                yield answer, body


def _link(index: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def packed(family: int, text: str) -> bytes:
    """The bytes of an address. Raises InvalidError."""
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise InvalidError(f"{text[:64]!r} is not an IPv{4 if family == socket.AF_INET else 6} address") from None


def packed_mac(text: str) -> bytes:
    """The bytes of a MAC address. Raises InvalidError."""
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts)
    except ValueError:
        mac = b""
    if len(mac) != 6:
        raise InvalidError(f"{text[:64]!r} is not a MAC address")
    return mac
