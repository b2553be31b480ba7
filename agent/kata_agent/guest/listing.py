"""The guest's interfaces and routes, as the kernel tells them."""

import socket
from typing import Final, NamedTuple

from kata_agent.guest.network import MAX_INTERFACES, Address, Route
from kata_common import netlink
from kata_common.netlink import Netlink

__all__ = ["Listed", "interfaces", "routes"]

MAX_ROUTES: Final = 1024
# Families that are told; others' routes (multicast) are not unicast.
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class Listed(NamedTuple):
    """An interface; `flags` are the kernel's IFF_*."""

    name: str
    mac: str
    mtu: int
    flags: int
    addresses: list[Address]


def interfaces() -> list[Listed]:
    """All of them, loopback too. Raises OSError."""
    with Netlink() as kernel:
        found: dict[int, Listed] = {}
        for body in kernel.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0))[:MAX_INTERFACES]:
            _, index, flags, _ = _link(body)
            known = netlink.attributes(body[netlink.LINK.size :])
            name, mac = netlink.text(known.get(netlink.IFLA_IFNAME)), known.get(netlink.IFLA_ADDRESS, b"")
            found[index] = Listed(name, mac.hex(":"), netlink.number(known.get(netlink.IFLA_MTU)), flags, [])
        for body in kernel.dump(netlink.GETADDR, netlink.ADDRESS.pack(0, 0, 0, 0, 0)):
            family, prefix, _, _, index = netlink.ADDRESS.unpack_from(body)
            known = netlink.attributes(body[netlink.ADDRESS.size :])
            # Of a point-to-point link IFA_ADDRESS is the other end's.
            address = known.get(netlink.IFA_LOCAL) or known.get(netlink.IFA_ADDRESS)
            if index in found and family in _FAMILIES and address:
                found[index].addresses.append(Address(family, socket.inet_ntop(family, address), prefix))
    return list(found.values())


def _link(body: bytes) -> tuple[int, int, int, int]:
    kind, index, flags, changed = netlink.LINK.unpack_from(body)[-4:]
    return kind, index, flags, changed


def routes() -> list[Route]:
    """The unicast routes of the main table. Raises OSError."""
    with Netlink() as kernel:
        names = {}
        for body in kernel.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0)):
            known = netlink.attributes(body[netlink.LINK.size :])
            names[_link(body)[1]] = netlink.text(known.get(netlink.IFLA_IFNAME))
        found = [
            _route(body, names)
            for family in _FAMILIES
            for body in kernel.dump(netlink.GETROUTE, netlink.ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        ]
    return [route for route in found if route is not None][:MAX_ROUTES]


def _route(body: bytes, names: dict[int, str]) -> Route | None:
    family, prefix, _, _, table, protocol, scope, kind, flags = netlink.ROUTE.unpack_from(body)
    if table != netlink.RT_TABLE_MAIN or kind != netlink.RTN_UNICAST:
        return None
    known = netlink.attributes(body[netlink.ROUTE.size :])

    def address(attribute: int) -> str:
        value = known.get(attribute)
        return socket.inet_ntop(family, value) if value else ""

    destination = address(netlink.RTA_DST)
    return Route(
        family=family,
        destination=f"{destination}/{prefix}" if destination else "",
        gateway=address(netlink.RTA_GATEWAY),
        device=names.get(netlink.number(known.get(netlink.RTA_OIF)), ""),
        source=address(netlink.RTA_PREFSRC),
        scope=scope,
        flags=flags,
        protocol=protocol,
        priority=netlink.number(known.get(netlink.RTA_PRIORITY)),
    )
