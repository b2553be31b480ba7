"""Ports of this host that lead to ports of the guest: `run -p HOST:GUEST`.

Connections are carried by vsock to the agent, which dials the guest's own localhost, as for `kubectl port-forward`.
That needs no network in the guest, no rule of a firewall, and no interface on the host.
"""

import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from kata_runtime.errors import HostError
from kata_runtime.guest.transport import Transport
from kata_runtime.loop import beside
from kata_runtime.sandbox.network.localhost import Forwarder

__all__ = ["Publication", "Published", "listening", "published"]

_HIGHEST = 65535
_BACKLOG = 128


@dataclass(frozen=True)
class Publication:
    """A port of the host (0: any that is free) at an address ("": all), and one of the guest."""

    address: str
    host: int
    guest: int

    @classmethod
    def parse(cls, text: str) -> "Publication":
        """Of `[ADDRESS:]HOST:GUEST[/tcp]`, as docker has it.

        Raises:
            ValueError: it is none.
        """
        ports, _, protocol = text.partition("/")
        if protocol not in ("", "tcp"):
            raise ValueError(f"{text!r}: {protocol} can't be published, only tcp")
        rest, _, guest = ports.rpartition(":")
        address, _, host = rest.rpartition(":")
        numbers = [number for number in (host, guest) if number.isascii() and number.isdecimal() and len(number) <= 5]
        if len(numbers) != 2 or int(host) > _HIGHEST or not 0 < int(guest) <= _HIGHEST:
            raise ValueError(f"{text!r} is not HOST:GUEST or ADDRESS:HOST:GUEST, of ports up to {_HIGHEST}")
        if address:
            address = str(ipaddress.ip_address(address.removeprefix("[").removesuffix("]")))
        return cls(address, int(host), int(guest))


@dataclass(frozen=True)
class Published:
    """A listener on this host, and the guest's port."""

    listener: socket.socket
    guest: int

    def __str__(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"{f'[{host}]' if ':' in host else host}:{port} -> {self.guest}"


@contextmanager
def listening(ports: Sequence[Publication]) -> Iterator[tuple[Published, ...]]:
    """Take the ports of the host for the block, before there is a guest: connections wait.

    Raises:
        HostError: one is taken, or can't be had.
    """
    with ExitStack() as stack:
        yield tuple(Published(stack.enter_context(_listen(port)), port.guest) for port in ports)


def _listen(port: Publication) -> socket.socket:
    v6 = ":" in port.address or (not port.address and socket.has_dualstack_ipv6())
    listener = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(port.address)))
        listener.bind((port.address, port.host))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{port.address or '*'}:{port.host}"
        raise HostError(f"port {where} can't be published: {error.strerror}", hint="-p with another port") from error
    return listener


@asynccontextmanager
async def published(ports: Sequence[Published], transport: Transport) -> AsyncIterator[None]:
    """Let connections to these ports reach the guest for the block."""
    forwarder = Forwarder(transport)
    async with beside((f"port {port}", _serve(forwarder, port)) for port in ports):
        yield


async def _serve(forwarder: Forwarder, port: Published) -> None:
    await forwarder.serve(port.listener, lambda _: port.guest)
