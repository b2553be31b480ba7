"""What the agent asks of the kernel's rtnetlink: links, addresses, routes, neighbours."""

import socket
from typing import Final, NamedTuple

from kata_agent.errors import InvalidError
from kata_common import netlink
from kata_common.netlink import Netlink, attribute

__all__ = ["Hop", "Link", "Rtnetlink", "packed", "packed_mac"]

# No duplicate address detection: the host's network has given the address to this pod. No route of the kernel's own
# making: those of the pod's namespace come one by one.
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_ADDRESS_FLAGS: Final = _IFA_F_NODAD | _IFA_F_NOPREFIXROUTE


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


class Rtnetlink(Netlink):
    """With `events` it is told of changes of links instead."""

    def __init__(self, *, events: bool = False) -> None:
        super().__init__()
        if events:
            self.subscribe(netlink.RTMGRP_LINK)

    def links(self) -> list[Link]:
        """All interfaces."""
        found = []
        for body in self.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0)):
            index = netlink.LINK.unpack_from(body)[2]
            known = netlink.attributes(body[netlink.LINK.size :])
            name = netlink.text(known.get(netlink.IFLA_IFNAME))
            found.append(Link(index, name, known.get(netlink.IFLA_ADDRESS, b"")))
        return found

    def rename(self, index: int, name: str) -> None:
        """Give a link that is down another name."""
        self.change(netlink.NEWLINK, netlink.LINK.pack(0, 0, index, 0, 0) + attribute(netlink.IFLA_IFNAME, name))

    def set_link(self, index: int, *, up: bool, mtu: int = 0, flags: int = 0) -> None:
        """Bring a link up or down; `mtu` 0 leaves it as it is, `flags` are further IFF_* to set."""
        wanted = (netlink.IFF_UP if up else 0) | flags
        body = netlink.LINK.pack(0, 0, index, wanted, netlink.IFF_UP | flags)
        self.change(netlink.NEWLINK, body + (attribute(netlink.IFLA_MTU, mtu) if mtu else b""))

    def add_address(self, index: int, family: int, address: bytes, prefix: int) -> None:
        """Add an address, at once usable; one that is there stays."""
        body = netlink.ADDRESS.pack(family, prefix, _ADDRESS_FLAGS & 0xFF, 0, index)
        body += attribute(netlink.IFA_LOCAL, address) + attribute(netlink.IFA_ADDRESS, address)
        body += attribute(netlink.IFA_FLAGS, _ADDRESS_FLAGS)
        self.change(netlink.NEWADDR, body, netlink.CREATE | netlink.REPLACE)

    def add_route(self, index: int, family: int, hop: Hop) -> None:
        """Add a unicast route of the main table. Raises FileExistsError where it is there."""
        table, kind = netlink.RT_TABLE_MAIN, netlink.RTN_UNICAST
        body = netlink.ROUTE.pack(family, hop.prefix, 0, 0, table, hop.protocol, hop.scope, kind, hop.flags)
        body += attribute(netlink.RTA_OIF, index)
        optional = (
            (netlink.RTA_DST, hop.destination),
            (netlink.RTA_GATEWAY, hop.gateway),
            (netlink.RTA_PREFSRC, hop.source),
            (netlink.RTA_PRIORITY, hop.priority),
        )
        body += b"".join(attribute(number, value) for number, value in optional if value)
        self.change(netlink.NEWROUTE, body, netlink.CREATE | netlink.EXCLUSIVE)

    def add_neighbour(self, index: int, family: int, address: bytes, mac: bytes, state: int, flags: int) -> None:
        """Add a neighbour, or change one that is there."""
        body = netlink.NEIGHBOUR.pack(family, index, state, flags, 0)
        body += attribute(netlink.NDA_DST, address) + attribute(netlink.NDA_LLADDR, mac)
        self.change(netlink.NEWNEIGH, body, netlink.CREATE | netlink.REPLACE)


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
