"""What is in a network namespace, and tc's ingress redirect.

Numbers: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

import errno
import socket
import struct
from collections.abc import Iterable

from kata_common import netlink
from kata_common.netlink import Netlink, attribute, attributes, nested, number, text
from kata_runtime.sandbox.network.model import (
    AF_INET,
    AF_INET6,
    MAX_ROUTES,
    NUD_PERMANENT,
    RTNH_F_ONLINK,
    Address,
    Interface,
    Neighbour,
    Route,
    Scan,
)

__all__ = ["Rtnetlink", "interfaces", "neighbours", "redirection", "routes"]

_TC_H_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL = 3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_U32_TERMINAL = 1
_ACT_STOLEN, _EGRESS_REDIR = 4, 1
# struct tc_u32_sel with one tc_u32_key, and struct tc_mirred.
_SELECTOR = struct.Struct("=BBBxHHhhI" + "IIii")
_MIRRED = struct.Struct("=IIiiiiI")
_IFA_F_SECONDARY_OR_TEMPORARY = 0x01
# Routes that the guest's kernel makes for its own link-local addresses.
_LINK_LOCAL = ("fe80::/64", "ff00::/8")
_FAMILIES = (AF_INET, AF_INET6)


class Rtnetlink(Netlink):
    """To be used by a thread that is in the namespace."""

    def scan(self) -> Scan:
        """Everything that a guest may need to know."""
        dropped: list[str] = []
        listed: list[bytes] = []
        for family in _FAMILIES:  # asked for all of them, the kernel leaves IPv6 out
            listed += self.dump(netlink.GETROUTE, netlink.ROUTE.pack(family, *(0,) * 8))
        return Scan(
            interfaces=interfaces(
                self.dump(netlink.GETLINK, netlink.LINK.pack(0, 0, 0, 0, 0)),
                self.dump(netlink.GETADDR, netlink.ADDRESS.pack(0, 0, 0, 0, 0)),
            ),
            routes=routes(listed, dropped),
            neighbours=neighbours(self.dump(netlink.GETNEIGH, netlink.NEIGHBOUR.pack(0, 0, 0, 0, 0))),
            dropped=tuple(dropped),
        )

    def set_up(self, index: int, mtu: int) -> None:
        """Bring an interface up with this MTU."""
        body = netlink.LINK.pack(0, 0, index, netlink.IFF_UP, netlink.IFF_UP)
        self.change(netlink.NEWLINK, body + attribute(netlink.IFLA_MTU, mtu))

    def redirect(self, source: int, target: int) -> None:
        """What comes in at `source` goes out at `target`, all of it.

        Raises:
            FileExistsError: somebody else has hold of what comes in.
            OSError: nothing has changed.
        """
        qdisc = netlink.TRAFFIC.pack(0, source, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + attribute(_TCA_KIND, "ingress")
        self.change(netlink.NEWQDISC, qdisc, netlink.CREATE | netlink.EXCLUSIVE)
        try:
            self.change(netlink.NEWTFILTER, redirection(source, target), netlink.CREATE | netlink.EXCLUSIVE)
        except BaseException:
            self.release(source)
            raise

    def release(self, source: int) -> None:
        """Undo `redirect`; nothing happens where there is nothing to undo."""
        try:
            self.change(netlink.DELQDISC, netlink.TRAFFIC.pack(0, source, _INGRESS_HANDLE, _TC_H_INGRESS, 0))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def redirection(source: int, target: int) -> bytes:
    """The filter of `source`'s ingress qdisc that sends all to `target`.

    A key of no bits matches everything; the kernels that the tests run on have neither matchall nor flower.
    """
    selector = _SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIR, target)
    action = nested(1, attribute(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, mirred)))
    options = nested(
        _TCA_OPTIONS, attribute(_U32_CLASSID, 0x10001), attribute(_U32_SEL, selector), nested(_U32_ACT, action)
    )
    head = netlink.TRAFFIC.pack(0, source, 0, _INGRESS_HANDLE, socket.htons(_ETH_P_ALL))
    return head + attribute(_TCA_KIND, "u32") + options


def _ip(family: int, address: bytes | None) -> str:
    """An address as text; of another family's length it is none."""
    return socket.inet_ntop(family, address) if address and len(address) == (4 if family == AF_INET else 16) else ""


def interfaces(links: Iterable[bytes], addresses: Iterable[bytes]) -> tuple[Interface, ...]:
    """Links with their addresses, by index."""
    found: dict[int, list[Address]] = {}
    for body in addresses:
        family, prefix, flags, _, index = netlink.ADDRESS.unpack_from(body)
        known = attributes(body[netlink.ADDRESS.size :])
        # On a point-to-point link IFA_ADDRESS is the other end's.
        address = known.get(netlink.IFA_LOCAL) or known.get(netlink.IFA_ADDRESS)
        temporary = family == AF_INET6 and flags & _IFA_F_SECONDARY_OR_TEMPORARY
        if address and family in _FAMILIES and not temporary:
            found.setdefault(index, []).append(Address(family, _ip(family, address), prefix))
    result = []
    for body in links:
        _, hardware, index, flags, _ = netlink.LINK.unpack_from(body)
        known = attributes(body[netlink.LINK.size :])
        information = attributes(known.get(netlink.IFLA_LINKINFO, b""))
        result.append(
            Interface(
                index=index,
                name=text(known.get(netlink.IFLA_IFNAME)),
                mac=known.get(netlink.IFLA_ADDRESS, b"").hex(":"),
                mtu=number(known.get(netlink.IFLA_MTU)),
                kind=text(information.get(netlink.IFLA_INFO_KIND)),
                hardware=hardware,
                flags=flags,
                master=number(known.get(netlink.IFLA_MASTER)),
                addresses=tuple(found.get(index, ())),
            )
        )
    return tuple(sorted(result, key=lambda interface: interface.index))


def routes(messages: Iterable[bytes], dropped: list[str]) -> tuple[Route, ...]:
    """Unicast routes of the main table; what others a pod might miss is added to `dropped`."""
    found: list[Route] = []
    for body in messages:
        family, length, _, _, table, protocol, scope, kind, flags = netlink.ROUTE.unpack_from(body)
        known = attributes(body[netlink.ROUTE.size :])
        if family not in _FAMILIES:
            continue
        address = known.get(netlink.RTA_DST)
        destination = f"{_ip(family, address)}/{length}" if address else ""
        table = number(known.get(netlink.RTA_TABLE)) or table  # the header has eight bits for it
        if destination in _LINK_LOCAL or table != netlink.RT_TABLE_MAIN:
            continue
        what = f"route to {destination or 'default'}"
        if kind != netlink.RTN_UNICAST or netlink.RTA_OIF not in known or netlink.RTA_VIA in known:
            dropped.append(f"{what} (not a plain route through one interface)")
        elif len(found) >= MAX_ROUTES:
            dropped.append(f"routes after the first {MAX_ROUTES}")
            break
        else:
            found.append(
                Route(
                    family=family,
                    device=number(known[netlink.RTA_OIF]),
                    destination=destination,
                    gateway=_ip(family, known.get(netlink.RTA_GATEWAY)),
                    source=_ip(family, known.get(netlink.RTA_PREFSRC)),
                    scope=scope,
                    flags=flags & RTNH_F_ONLINK,
                    protocol=protocol,
                    priority=number(known.get(netlink.RTA_PRIORITY)),
                )
            )
    return tuple(found)


def neighbours(messages: Iterable[bytes]) -> tuple[Neighbour, ...]:
    """The permanent ones that have a MAC address."""
    found = []
    for body in messages:
        family, index, state, flags, _ = netlink.NEIGHBOUR.unpack_from(body)
        known = attributes(body[netlink.NEIGHBOUR.size :])
        address, mac = known.get(netlink.NDA_DST), known.get(netlink.NDA_LLADDR)
        if state & NUD_PERMANENT and address and mac and family in _FAMILIES:
            found.append(Neighbour(family, index, _ip(family, address), mac.hex(":"), flags))
    return tuple(found)
