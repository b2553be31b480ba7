"""The guest's network: interfaces, routes and neighbours as the host says, and what went through.

The devices are the host's doing; an interface is known by its MAC address, and awaited where it is still on its way.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kata_agent.errors import AgentError, InvalidError, NotFoundError, SetupError, TimedOutError
from kata_agent.guest.rtnetlink import Hop, Link, Rtnetlink, packed, packed_mac
from kata_common.netlink import IFF_NOARP
from kata_common.text import is_number
from kata_telemetry.span import Site

__all__ = ["Address", "Counters", "Interface", "Neighbour", "Network", "Route", "counters"]

_trace = Site(package="container", subsystem="network")

_NAME = re.compile(r"[^\s/:\0]{1,15}\Z")  # dev_valid_name() of the kernel
MTU: Final = (68, 65535)
# Seconds until a hotplugged device must be there.
DEVICE_WITHIN: Final = 10.0
MAX_INTERFACES: Final = 64
_DRIVER: Final = Path("/sys/bus/virtio/drivers/virtio_net")
_SYSCTLS: Final = Path("/proc/sys")
_COUNTERS: Final = Path("/proc/self/net/dev")


class Address(NamedTuple):
    """An address; `family` is AF_INET or AF_INET6."""

    family: int
    address: str
    prefix: int


class Interface(NamedTuple):
    """What an interface shall be; `mtu` 0 leaves it as it is."""

    mac: str
    name: str
    mtu: int
    addresses: Sequence[Address]
    noarp: bool = False


class Route(NamedTuple):
    """A unicast route of the main table; an empty destination is the default route's."""

    family: int
    destination: str
    gateway: str
    device: str
    source: str
    scope: int
    flags: int
    protocol: int
    priority: int


class Neighbour(NamedTuple):
    """An entry of the neighbour table; `state` is NUD_*, `flags` NTF_*."""

    family: int
    address: str
    device: str
    mac: str
    state: int
    flags: int


class Counters(NamedTuple):
    """What has gone through an interface, in the order of the contract's NetworkStats."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class Network:
    """One per sandbox. `load_driver` loads the driver of network devices, which few guests need."""

    def __init__(self, load_driver: Callable[[], Awaitable[None]]) -> None:
        self._load_driver = load_driver

    async def update_interface(self, wanted: Interface) -> str:
        """Make an interface what it shall be and bring it up; the name that it had.

        Raises InvalidError, TimedOutError (there is no such device), SetupError.
        """
        mac = packed_mac(wanted.mac)
        if not _NAME.match(wanted.name) or wanted.name in (".", ".."):
            raise InvalidError(f"{wanted.name[:40]!r} can't be the name of an interface")
        if wanted.mtu and not MTU[0] <= wanted.mtu <= MTU[1]:
            raise InvalidError(f"MTU {wanted.mtu} of {wanted.name} is not between {MTU[0]} and {MTU[1]}")
        addresses = [(a.family, packed(a.family, a.address), a.prefix) for a in wanted.addresses]
        for address in wanted.addresses:
            _check_prefix(address.family, address.prefix)
        with _trace.span("awaitDevice", interface=wanted.name):
            link = await self._device(mac)
        with _trace.span("setUpInterface", interface=wanted.name, addresses=len(addresses)):
            try:
                _set_up(link, wanted, addresses)
            except OSError as error:
                raise SetupError(f"can't set up interface {wanted.name}: {error.strerror}") from error
        return link.name

    async def _device(self, mac: bytes) -> Link:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with Rtnetlink(events=True) as events, Rtnetlink() as kernel:

            def on_change() -> None:
                events.drain()
                changed.set()

            loop.add_reader(events.fileno(), on_change)
            try:
                async with asyncio.timeout(DEVICE_WITHIN):
                    if found := _find(kernel, mac):
                        return found
                    if not _DRIVER.exists():
                        await self._load_driver()
                    while True:
                        changed.clear()
                        if found := _find(kernel, mac):
                            return found
                        await changed.wait()
            except TimeoutError:
                there = ", ".join(f"{link.name} {link.mac.hex(':')}" for link in kernel.links()[:MAX_INTERFACES])
                raise TimedOutError(
                    f"no network device {mac.hex(':')} within {DEVICE_WITHIN:g} s; there are {there}"
                ) from None
            finally:
                loop.remove_reader(events.fileno())

    def update_routes(self, routes: Iterable[Route]) -> None:
        """Add those that are missing, in an order in which gateways can be reached. Raises InvalidError, SetupError."""
        with Rtnetlink() as kernel:
            indexes = {link.name: link.number for link in kernel.links()}
            for route in sorted(routes, key=lambda route: bool(route.gateway)):
                with _telling("route", route.destination or "default"):
                    hop = Hop(
                        *_split(route.family, route.destination),
                        gateway=packed(route.family, route.gateway) if route.gateway else b"",
                        source=packed(route.family, route.source) if route.source else b"",
                        scope=_byte(route.scope, "scope"),
                        protocol=_byte(route.protocol, "protocol"),
                        flags=route.flags,
                        priority=route.priority,
                    )
                    with suppress(FileExistsError):
                        kernel.add_route(_index(indexes, route.device), route.family, hop)

    def set_sysctls(self, values: Mapping[str, str]) -> None:
        """Set the network's, by path below /proc/sys. Raises SetupError."""
        for path, value in values.items():
            try:
                (_SYSCTLS / path).write_text(value)
            except OSError as error:
                raise SetupError(f"can't set sysctl {path} to {value[:40]!r}: {error.strerror}") from error

    def add_neighbours(self, neighbours: Iterable[Neighbour]) -> None:
        """Add entries. Raises InvalidError, SetupError."""
        with Rtnetlink() as kernel:
            indexes = {link.name: link.number for link in kernel.links()}
            for entry in neighbours:
                with _telling("neighbour", entry.address):
                    kernel.add_neighbour(
                        _index(indexes, entry.device),
                        entry.family,
                        packed(entry.family, entry.address),
                        packed_mac(entry.mac),
                        entry.state & 0xFFFF,
                        _byte(entry.flags, "flags"),
                    )


class _telling:  # noqa: N801 - reads like the function that it stands for
    """Says what the kernel refused."""

    def __init__(self, kind: str, what: str) -> None:
        self._what = f"{kind} {what[:64]}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, AgentError):
            raise SetupError(f"can't add {self._what}: {error.strerror}") from error


def counters() -> list[Counters]:
    """Counters of all interfaces but loopback (proc(5), /proc/net/dev)."""
    found: list[Counters] = []
    with suppress(OSError):
        for line in _COUNTERS.read_text().splitlines()[2:]:
            name, _, rest = line.partition(":")
            numbers = [int(word) for word in rest.split()]
            if name.strip() != "lo" and len(numbers) >= 12 and len(found) < MAX_INTERFACES:
                found.append(Counters(name.strip(), *numbers[0:4], *numbers[8:12]))
    return found


def _find(kernel: Rtnetlink, mac: bytes) -> Link | None:
    return next((link for link in kernel.links() if link.mac == mac), None)


def _set_up(link: Link, wanted: Interface, addresses: Iterable[tuple[int, bytes, int]]) -> None:
    with Rtnetlink() as kernel:
        _rename(kernel, link, wanted.name)
        # Its own link-local address must not wait for an answer that can't come.
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{wanted.name}/accept_dad").write_text("0")
        kernel.set_link(link.number, up=True, mtu=wanted.mtu, flags=IFF_NOARP if wanted.noarp else 0)
        for family, address, prefix in addresses:
            kernel.add_address(link.number, family, address, prefix)


def _rename(kernel: Rtnetlink, link: Link, name: str) -> None:
    """Give the link its name; another one that has it gets out of the way (it will get its own, or is nobody's)."""
    if link.name == name:
        return
    for other in kernel.links():
        if other.name == name:
            kernel.set_link(other.number, up=False)
            kernel.rename(other.number, f"kata{other.number}")
    kernel.set_link(link.number, up=False)
    kernel.rename(link.number, name)


def _index(indexes: dict[str, int], name: str) -> int:
    try:
        return indexes[name]
    except KeyError:
        raise NotFoundError(f"the guest has no interface {name[:40]!r}") from None


def _check_prefix(family: int, prefix: int) -> None:
    if not 0 <= prefix <= (32 if family == socket.AF_INET else 128):
        raise InvalidError(f"a prefix of {prefix} bits is too long")


def _split(family: int, text: str) -> tuple[bytes, int]:
    """`10.0.0.0/8` as bytes and length; nothing where there is nothing."""
    if not text:
        return b"", 0
    address, _, length = text.partition("/")
    prefix = int(length) if is_number(length) else -1
    _check_prefix(family, prefix)
    return packed(family, address), prefix


def _byte(value: int, what: str) -> int:
    if not 0 <= value <= 255:
        raise InvalidError(f"{what} {value} is not between 0 and 255")
    return value
