"""Interfaces, addresses, routes and neighbours of a network namespace, and what of them goes to the guest. Pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kata_runtime.errors import SandboxError

if TYPE_CHECKING:
    from kata_protos import agent_pb2 as pb

__all__ = ["Address", "Interface", "Neighbour", "Route", "Scan", "to_arp_neighbors", "to_interface", "to_routes"]

# linux/if_arp.h, linux/if.h, linux/socket.h
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
AF_INET, AF_INET6 = 2, 10
# linux/rtnetlink.h, linux/neighbour.h
RTNH_F_ONLINK = 4
NUD_PERMANENT = 0x80
# More of them are no pod's, and cost a message each.
MAX_ROUTES = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    family: int
    address: str
    prefix: int

    @property
    def link_local(self) -> bool:
        """Whether it is one that IPv6 makes by itself, from the MAC address."""
        return self.family == AF_INET6 and ipaddress.IPv6Address(self.address).is_link_local


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface. `kind` is rtnetlink's ("veth"; empty for a physical device), `hardware` ARPHRD_*, `master` the
    index of the bridge it belongs to, or 0.
    """

    index: int
    name: str
    mac: str
    mtu: int
    kind: str = ""
    hardware: int = ARPHRD_ETHER
    flags: int = IFF_UP
    master: int = 0
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. `destination` with its prefix length, empty for the default route."""

    family: int
    device: int
    destination: str = ""
    gateway: str = ""
    source: str = ""
    scope: int = 0
    flags: int = 0
    protocol: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent entry of the neighbour table."""

    family: int
    device: int
    address: str
    mac: str
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What is in a namespace. `dropped` says, for a log, what of it no guest will get."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    dropped: tuple[str, ...] = field(default=())

    def endpoints(self, own: Iterable[str] = ()) -> list[Interface]:
        """The interfaces that go to the guest, in the namespace's order; `own` are names of our taps.

        Not loopback, which the guest has; not what nobody has set up (every namespace has tunl0, gre0 and their kin
        where the host has loaded their modules); not the ports of a bridge, which belong to it.

        Raises:
            SandboxError: one is of a type that a guest can't be given.
        """
        taken = set(own)
        found = []
        for interface in self.interfaces:
            if interface.flags & IFF_LOOPBACK or interface.hardware == ARPHRD_LOOPBACK or interface.name in taken:
                continue
            configured = any(not address.link_local for address in interface.addresses)
            if interface.master or not (configured or interface.flags & IFF_UP):
                continue
            if interface.hardware != ARPHRD_ETHER:
                kind = interface.kind or "unknown"
                raise SandboxError(
                    f"interface {interface.name} of the network namespace can't be given to a VM: "
                    f"it is no Ethernet device (kind {kind}, hardware type {interface.hardware})",
                    hint="Ethernet devices can: veth, macvlan, ipvlan (L2), vlan, bridge, tap, physical ones",
                )
            found.append(interface)
        return found


def to_interface(interface: Interface) -> "pb.Interface":
    """For the agent. Link-local addresses the guest makes by itself."""
    from kata_protos import agent_pb2 as pb

    return pb.Interface(
        name=interface.name,
        IPAddresses=[
            pb.IPAddress(family=_family(address.family), address=address.address, mask=str(address.prefix))
            for address in interface.addresses
            if not address.link_local
        ],
        mtu=interface.mtu,
        hwAddr=interface.mac,
        raw_flags=interface.flags & IFF_NOARP,
    )


def to_routes(routes: Iterable[Route], names: dict[int, str]) -> "pb.Routes":
    """For the agent: the routes through the interfaces `names` (by index) has."""
    from kata_protos import agent_pb2 as pb

    return pb.Routes(
        Routes=[
            pb.Route(
                family=_family(route.family),
                dest=route.destination,
                gateway=route.gateway,
                device=names[route.device],
                source=route.source,
                scope=route.scope,
                flags=route.flags,
                protocol=route.protocol,
                priority=route.priority,
            )
            for route in routes
            if route.device in names
        ]
    )


def to_arp_neighbors(neighbours: Iterable[Neighbour], names: dict[int, str]) -> "pb.ARPNeighbors":
    """For the agent, as `to_routes`."""
    from kata_protos import agent_pb2 as pb

    return pb.ARPNeighbors(
        ARPNeighbors=[
            pb.ARPNeighbor(
                toIPAddress=pb.IPAddress(family=_family(entry.family), address=entry.address),
                device=names[entry.device],
                lladdr=entry.mac,
                state=NUD_PERMANENT,
                flags=entry.flags,
            )
            for entry in neighbours
            if entry.device in names
        ]
    )


def _family(family: int) -> "pb.IPFamily":
    from kata_protos import agent_pb2 as pb

    return pb.IPFamily.v6 if family == AF_INET6 else pb.IPFamily.v4
