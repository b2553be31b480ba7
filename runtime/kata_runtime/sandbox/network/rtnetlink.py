"""pyroute2's messages, on a socket of a network namespace: what is in it, and tc's ingress redirect.

Of pyroute2 only the messages are used: `import pyroute2` is 130 to 270 ms on the way of every container, its IPRoute
alone still 80 to 100 ms, the messages 35 to 45 ms (docs/decisions/0010). Numbers: linux/rtnetlink.h, linux/netlink.h,
linux/pkt_sched.h.
"""

import errno
import importlib.util
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

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

__all__ = ["Rtnetlink", "interfaces", "neighbours", "prepare", "routes"]

_HEADER = struct.Struct("=IHHII")
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x300, 0x400, 0x200
_NEWLINK, _GETLINK, _GETADDR, _GETROUTE, _GETNEIGH = 16, 18, 22, 26, 30
_NEWQDISC, _DELQDISC, _NEWTFILTER = 36, 37, 44
_TC_H_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ETH_P_ALL = 3
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_IFF_UP = 1
_IFA_F_SECONDARY_OR_TEMPORARY = 0x01
# Routes that the guest's kernel makes for its own link-local addresses.
_LINK_LOCAL = ("fe80::/64", "ff00::/8")
_BUFFER = 1 << 18
# Seconds; the kernel answers at once.
_TIMEOUT = 5.0

Message = Mapping[str, Any]


def prepare() -> None:
    """Make `import pyroute2.netlink…` not run pyroute2's own __init__, which imports all of it."""
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        assert spec is not None, "pyroute2 is one of our dependencies"
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)


class Rtnetlink:
    """A context manager, to be used by a thread that is in the namespace. Requests raise OSError with the errno."""

    def __init__(self) -> None:
        prepare()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_TIMEOUT)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def scan(self) -> Scan:
        """Everything that a guest may need to know."""
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.ndmsg import ndmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        dropped: list[str] = []
        addresses = list(self._ask(_GETADDR, _DUMP, ifaddrmsg()))
        listed: list[Message] = []
        for family in (AF_INET, AF_INET6):  # asked for all of them, the kernel leaves IPv6 out
            message = rtmsg()
            message["family"] = family
            listed += self._ask(_GETROUTE, _DUMP, message)
        return Scan(
            interfaces=interfaces(self._ask(_GETLINK, _DUMP, ifinfmsg()), addresses),
            routes=routes(listed, dropped),
            neighbours=neighbours(self._ask(_GETNEIGH, _DUMP, ndmsg())),
            dropped=tuple(dropped),
        )

    def set_up(self, index: int, mtu: int) -> None:
        """Bring an interface up with this MTU."""
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

        message = ifinfmsg()
        message.update(index=index, flags=_IFF_UP, change=_IFF_UP, attrs=[("IFLA_MTU", mtu)])
        self._change(_NEWLINK, 0, message)

    def redirect(self, source: int, target: int) -> None:
        """What comes in at `source` goes out at `target`, all of it.

        Raises:
            FileExistsError: somebody else has hold of what comes in.
            OSError: nothing has changed.
        """
        from pyroute2.netlink.rtnl.tcmsg import cls_u32, tcmsg

        message = tcmsg()
        message.update(index=source, handle=_INGRESS_HANDLE, parent=_TC_H_INGRESS, attrs=[("TCA_KIND", "ingress")])
        self._change(_NEWQDISC, _CREATE | _EXCLUSIVE, message)
        action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
        # A key of no bits matches everything; the kernels that the tests run on have neither matchall nor flower.
        options = cls_u32.get_parameters({"target": 0x10001, "keys": ["0x0/0x0+0"], "action": action})
        message = tcmsg()
        message.update(index=source, parent=_INGRESS_HANDLE, info=socket.htons(_ETH_P_ALL))
        message["attrs"] = [("TCA_KIND", "u32"), ("TCA_OPTIONS", options)]
        try:
            self._change(_NEWTFILTER, _CREATE | _EXCLUSIVE, message)
        except BaseException:
            self.release(source)
            raise

    def release(self, source: int) -> None:
        """Undo `redirect`; nothing happens where there is nothing to undo."""
        from pyroute2.netlink.rtnl.tcmsg import tcmsg

        message = tcmsg()
        message.update(index=source, handle=_INGRESS_HANDLE, parent=_TC_H_INGRESS)
        try:
            self._change(_DELQDISC, 0, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise

    def _change(self, kind: int, flags: int, message: Any) -> None:  # noqa: ANN401 - pyroute2's nlmsg, untyped
        for _ in self._ask(kind, _ACK | flags, message):
            pass

    def _ask(self, kind: int, flags: int, message: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
        self._sequence += 1
        message["header"] = {"type": kind, "flags": _REQUEST | flags, "sequence_number": self._sequence, "pid": 0}
        message.encode()
        self._socket.send(message.data)
        while True:
            data = self._socket.recv(_BUFFER)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, answer, _, sequence, _ = _HEADER.unpack_from(data, offset)
                if sequence == self._sequence:
                    if answer == _NLMSG_DONE:
                        return
                    if answer == _NLMSG_ERROR:
                        (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                        if code:
                            raise OSError(-code, os.strerror(-code))
                        return
                    reply = type(message)(data, offset=offset)
                    reply.decode()
                    yield reply
                offset += (length + 3) & ~3


def interfaces(links: Iterable[Message], addresses: Iterable[Message]) -> tuple[Interface, ...]:
    """Links with their addresses, by index."""
    found: dict[int, list[Address]] = {}
    for message in addresses:
        attributes = _attributes(message)
        # On a point-to-point link IFA_ADDRESS is the other end's.
        address = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
        temporary = message["family"] == AF_INET6 and message["flags"] & _IFA_F_SECONDARY_OR_TEMPORARY
        if address and message["family"] in (AF_INET, AF_INET6) and not temporary:
            entry = Address(message["family"], address, message["prefixlen"])
            found.setdefault(message["index"], []).append(entry)
    result = []
    for message in links:
        attributes = _attributes(message)
        information = attributes.get("IFLA_LINKINFO")
        result.append(
            Interface(
                index=message["index"],
                name=attributes.get("IFLA_IFNAME", ""),
                mac=attributes.get("IFLA_ADDRESS", ""),
                mtu=attributes.get("IFLA_MTU", 0),
                kind=str(_attributes(information).get("IFLA_INFO_KIND") or "") if information else "",
                hardware=message["ifi_type"],
                flags=message["flags"],
                master=attributes.get("IFLA_MASTER", 0),
                addresses=tuple(found.get(message["index"], ())),
            )
        )
    return tuple(sorted(result, key=lambda interface: interface.index))


def routes(messages: Iterable[Message], dropped: list[str]) -> tuple[Route, ...]:
    """Unicast routes of the main table; what others a pod might miss is added to `dropped`."""
    found: list[Route] = []
    for message in messages:
        attributes = _attributes(message)
        family, length = message["family"], message["dst_len"]
        destination = f"{attributes['RTA_DST']}/{length}" if attributes.get("RTA_DST") else ""
        if family not in (AF_INET, AF_INET6) or destination in _LINK_LOCAL:
            continue
        if attributes.get("RTA_TABLE", message["table"]) != _RT_TABLE_MAIN:
            continue
        what = f"route to {destination or 'default'}"
        if message["type"] != _RTN_UNICAST or "RTA_OIF" not in attributes or "RTA_VIA" in attributes:
            dropped.append(f"{what} (not a plain route through one interface)")
        elif len(found) >= MAX_ROUTES:
            dropped.append(f"routes after the first {MAX_ROUTES}")
            break
        else:
            found.append(
                Route(
                    family=family,
                    device=attributes["RTA_OIF"],
                    destination=destination,
                    gateway=attributes.get("RTA_GATEWAY", ""),
                    source=attributes.get("RTA_PREFSRC", ""),
                    scope=message["scope"],
                    flags=message["flags"] & RTNH_F_ONLINK,
                    protocol=message["proto"],
                    priority=attributes.get("RTA_PRIORITY", 0),
                )
            )
    return tuple(found)


def neighbours(messages: Iterable[Message]) -> tuple[Neighbour, ...]:
    """The permanent ones that have a MAC address."""
    found = []
    for message in messages:
        attributes = _attributes(message)
        address, mac = attributes.get("NDA_DST"), attributes.get("NDA_LLADDR")
        if message["state"] & NUD_PERMANENT and address and mac and message["family"] in (AF_INET, AF_INET6):
            found.append(Neighbour(message["family"], message["ifindex"], address, mac, message["flags"]))
    return tuple(found)


def _attributes(message: Message) -> dict[str, Any]:
    return {name: value for name, value, *_ in message["attrs"]}
