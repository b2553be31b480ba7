"""Netlink as both sides speak it to the kernel: messages, attributes, requests and their answers.

Written by hand: of the 30 kinds of message that a library knows, the guest sends five and the host six, and importing
only those costs 0.3 to 0.4 s in an emulated guest and a tenth of a second on a host (docs/decisions/0027). Layouts and
numbers: netlink(7), rtnetlink(7), linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h,
linux/neighbour.h, linux/pkt_sched.h.
"""

import os
import socket
import sys
from collections.abc import Iterator
from struct import Struct
from typing import Final, Self

_HEADER: Final = Struct("=IHHII")
_ATTRIBUTE: Final = Struct("=HH")
# NLA_F_NESTED and NLA_F_NET_BYTEORDER aside.
_ATTRIBUTE_KIND: Final = 0x3FFF
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _INTERRUPTED, _DUMP = 0x1, 0x4, 0x10, 0x300
# What a change may do, besides changing what is there.
EXCLUSIVE, CREATE, REPLACE = 0x200, 0x400, 0x100
NEWLINK, GETLINK, NEWADDR, GETADDR, NEWROUTE, GETROUTE, NEWNEIGH, GETNEIGH = 16, 18, 20, 22, 24, 26, 28, 30
NEWQDISC, DELQDISC, NEWTFILTER = 36, 37, 44
# What stands before the attributes. ifinfomsg: family, hardware type, index, flags, which flags to change.
LINK: Final = Struct("=BxHiII")
# ifaddrmsg: family, prefix length, flags, scope, index.
ADDRESS: Final = Struct("=BBBBi")
# rtmsg: family, length of destination and source, TOS, table, protocol, scope, type, flags.
ROUTE: Final = Struct("=8BI")
# ndmsg: family, index, state, flags, type.
NEIGHBOUR: Final = Struct("=BxxxiHBB")
# tcmsg: family, index, handle, parent, info.
TRAFFIC: Final = Struct("=BxxxiIII")
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 15, 18
NDA_DST, NDA_LLADDR = 1, 2
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
IFF_UP, IFF_NOARP = 0x1, 0x80
RTMGRP_LINK = 1
_BUFFER: Final = 1 << 18
# Seconds; the kernel answers at once.
_TIMEOUT: Final = 5.0
# How often a listing is asked for that changed while it was told.
_TRIES: Final = 5


class Netlink:
    """A socket to the kernel's rtnetlink in the network namespace of the thread that makes it; a context manager.

    Requests raise OSError with the kernel's errno.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def subscribe(self, groups: int) -> None:
        """Be told of changes instead: `fileno` becomes readable, and `drain` takes what was told."""
        self._socket.bind((0, groups))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        """Take what has been told; what it was doesn't matter (and ENOBUFS says that it was a lot)."""
        try:
            while self._socket.recv(_BUFFER):
                pass
        except OSError:
            pass

    def dump(self, kind: int, content: bytes) -> list[bytes]:
        """Bodies of the messages that answer a request for a listing."""
        for _ in range(_TRIES - 1):
            try:
                return list(self._ask(kind, _DUMP, content))
            except InterruptedError:
                continue
        return list(self._ask(kind, _DUMP, content))

    def change(self, kind: int, content: bytes, flags: int = 0) -> None:
        """Have something changed, and wait for the kernel's word that it is."""
        for _ in self._ask(kind, _ACK | flags, content):
            pass

    def _ask(self, kind: int, flags: int, content: bytes) -> Iterator[bytes]:
        self._sequence += 1
        length = _HEADER.size + len(content)
        self._socket.send(_HEADER.pack(length, kind, _REQUEST | flags, self._sequence, 0) + content)
        while True:
            data = memoryview(self._socket.recv(_BUFFER))
            while len(data) >= _HEADER.size:
                length, answer, said, sequence, _ = _HEADER.unpack_from(data)
                body = bytes(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _ERROR:
                    code = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if said & _INTERRUPTED:
                    raise InterruptedError("what was listed changed meanwhile")
                if answer == _DONE:
                    return
                yield body


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """An attribute; numbers have 32 bits, texts end with a zero."""
    if isinstance(value, int):
        value = (value & 0xFFFF_FFFF).to_bytes(4, sys.byteorder)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind, b"".join(inner))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their kind; of equal ones the last. What is cut off is left out."""
    found = {}
    view = memoryview(data)
    while len(view) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(view)
        if not _ATTRIBUTE.size <= length <= len(view):
            break
        found[kind & _ATTRIBUTE_KIND] = bytes(view[_ATTRIBUTE.size : length])
        view = view[(length + 3) & ~3 :]
    return found


def number(value: bytes | None) -> int:
    """An attribute's number, of 64 bits at most; 0 where there is none."""
    return int.from_bytes((value or b"")[:8], sys.byteorder)


def text(value: bytes | None) -> str:
    """An attribute's text; empty where there is none."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")
