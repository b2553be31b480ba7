"""The owner of a sandbox's network: finds interfaces, brings them into the VM, tells the guest, and undoes it all."""

import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kata_common.documents import parse_json
from kata_runtime.errors import HostError
from kata_runtime.guest.transport import Transport
from kata_runtime.hypervisor.machine import Machine, NetDevice
from kata_runtime.sandbox.network.namespace import Namespace
from kata_runtime.sandbox.network.tap import TAP_NAME, connect, disconnect, open_tap
from kata_telemetry.span import Site

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient
    from kata_runtime.sandbox.network.model import Interface, Scan

__all__ = ["Network", "undo_leftover"]

_trace = Site(package="virtcontainers", subsystem="network")
_log = logging.getLogger("kata.network")

_VHOST_NET = Path("/dev/vhost-net")


@dataclass
class _Endpoint:
    """An interface and its tap. `fd` is the tap's until the machine has it, then -1."""

    interface: "Interface"
    number: int
    fd: int
    connected: bool = False

    @property
    def tap(self) -> str:
        return TAP_NAME.format(self.number)


class Network:
    """The network of one sandbox. `record` is a file that says what a killed runtime would leave."""

    def __init__(self, namespace: Namespace, record: Path) -> None:
        self._namespace = namespace
        self._record = record
        self._endpoints: list[_Endpoint] = []
        self._scan: Scan | None = None
        self._vhost = False

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: str, record: Path) -> AsyncIterator["Network"]:
        """The network of the namespace at `path` (empty: of a new one) for the block; its interfaces are connected.

        Raises:
            SandboxError: the namespace can't be used; nothing in it has changed.
        """
        with Namespace.at(path) if path else Namespace.made() as namespace:
            network = cls(namespace, record)
            try:
                with _trace.span("createNetwork", namespace=path or "new"):
                    await network.add_endpoints()
                yield network
            finally:
                with _trace.span("removeNetwork", endpoints=len(network._endpoints)):
                    await network._remove()

    @property
    def namespace(self) -> str:
        """A path of the namespace that holds as long as this process does."""
        return f"/proc/{os.getpid()}/fd/{self._namespace.fd}"

    def forward_localhost(self, transport: Transport) -> AbstractAsyncContextManager[None]:
        """Let connections to the namespace's localhost reach the guest's for the block."""
        from kata_runtime.sandbox.network.localhost import localhost_forwarded

        return localhost_forwarded(self._namespace, transport)

    async def add_endpoints(self) -> int:
        """Connect the interfaces that have come since the last time; how many.

        Raises:
            SandboxError: one can't be used.
        """
        before = len(self._endpoints)
        # Where there is nothing but loopback, nothing has to be imported to know that.
        names = await self._namespace.run(socket.if_nameindex)
        known = {endpoint.interface.index for endpoint in self._endpoints}
        taps = {endpoint.tap for endpoint in self._endpoints}
        if any(name not in (*taps, "lo") and index not in known for index, name in names):
            await self._namespace.run(self._connect_new)
        return len(self._endpoints) - before

    def _connect_new(self) -> None:
        from kata_runtime.sandbox.network.rtnetlink import Rtnetlink

        with _trace.span("generateVCNetworkStructures") as span:
            with Rtnetlink() as kernel:
                scan = kernel.scan()
            span.set(interfaces=len(scan.interfaces), routes=len(scan.routes))
        for what in scan.dropped:
            _log.warning("not in the guest: %s", what)
        known = {endpoint.interface.index for endpoint in self._endpoints}
        taps = {endpoint.tap for endpoint in self._endpoints}
        new = [interface for interface in scan.endpoints(taps) if interface.index not in known]
        self._scan = scan
        with _trace.span("AddEndpoints", endpoints=len(new)):
            for interface in new:
                self._add(interface)

    def _add(self, interface: "Interface") -> None:
        number = len(self._endpoints)
        endpoint = _Endpoint(interface, number, open_tap(TAP_NAME.format(number)))
        self._endpoints.append(endpoint)
        with _trace.span("Attach", type=interface.kind or "physical", interface=interface.name):
            # Before anything changes: only what is in the record will be undone after a SIGKILL.
            self._write_record()
            connect(interface, endpoint.tap)
            endpoint.connected = True

    def _write_record(self) -> None:
        if not self._namespace.path:
            return  # it ends with us, and everything in it
        interfaces = {endpoint.interface.name: endpoint.interface.index for endpoint in self._endpoints}
        self._record.write_text(json.dumps({"namespace": self._namespace.path, "interfaces": interfaces}))

    def devices(self, stack: ExitStack, *, vhost: bool, lend: bool = False) -> tuple[NetDevice, ...]:
        """What the machine has to be given; the file descriptors are `stack`'s from now on.

        With `vhost` the host's kernel moves the packets where it can, also those of devices that come later. With
        `lend` they are copies, and the devices may be given to another machine until `lend_no_more`.
        """
        self._vhost = vhost
        return tuple(self._device(endpoint, stack, lend=lend) for endpoint in self._endpoints if endpoint.fd >= 0)

    def lend_no_more(self) -> None:
        """Whoever has been lent the devices keeps them."""
        for endpoint in self._endpoints:
            if endpoint.fd >= 0:
                os.close(endpoint.fd)
                endpoint.fd = -1

    def _device(self, endpoint: _Endpoint, stack: ExitStack, *, lend: bool = False) -> NetDevice:
        if lend:
            fd = os.dup(endpoint.fd)
        else:
            fd, endpoint.fd = endpoint.fd, -1
        stack.callback(os.close, fd)
        vhost_fd = -1
        if self._vhost and _VHOST_NET.exists():
            try:
                vhost_fd = os.open(_VHOST_NET, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(
                    f"{_VHOST_NET} can't be opened: {error.strerror}",
                    hint="modprobe vhost_net, or [hypervisor.qemu] disable_vhost_net = true",
                ) from error
            stack.callback(os.close, vhost_fd)
        return NetDevice(f"network-{endpoint.number}", endpoint.interface.mac, fd, vhost_fd)

    async def configure(self, agent: "AgentClient") -> None:
        """Tell the guest of its interfaces, routes and neighbours.

        Raises:
            AgentError: it can't have them.
        """
        await self._tell(agent, self._endpoints)

    async def update(self, machine: Machine, agent: "AgentClient") -> None:
        """Bring interfaces that have come since into a running guest.

        Raises:
            KataError: it can't be done; the sandbox has to end.
        """
        first = len(self._endpoints)
        if not await self.add_endpoints():
            return
        with ExitStack() as stack:
            for endpoint in self._endpoints[first:]:
                with _trace.span("HotAttach", interface=endpoint.interface.name):
                    await machine.plug(self._device(endpoint, stack))
        await self._tell(agent, self._endpoints[first:])

    async def _tell(self, agent: "AgentClient", endpoints: Iterable[_Endpoint]) -> None:
        if self._scan is None:
            return
        from kata_protos import agent_pb2 as pb
        from kata_runtime.sandbox.network.model import to_arp_neighbors, to_interface, to_routes

        for endpoint in endpoints:
            request = pb.UpdateInterfaceRequest(interface=to_interface(endpoint.interface))
            await agent.call(agent.service.UpdateInterface, request)
        names = {endpoint.interface.index: endpoint.interface.name for endpoint in self._endpoints}
        if (routes := to_routes(self._scan.routes, names)).Routes:
            await agent.call(agent.service.UpdateRoutes, pb.UpdateRoutesRequest(routes=routes))
        if (neighbours := to_arp_neighbors(self._scan.neighbours, names)).ARPNeighbors:
            await agent.call(agent.service.AddARPNeighbors, pb.AddARPNeighborsRequest(neighbors=neighbours))

    async def _remove(self) -> None:
        for endpoint in self._endpoints:
            if endpoint.fd >= 0:
                os.close(endpoint.fd)
                endpoint.fd = -1
        if not self._endpoints or not self._namespace.path:
            return
        interfaces = {each.interface.name: each.interface.index for each in self._endpoints if each.connected}
        for problem in await self._namespace.run(lambda: disconnect(interfaces)):
            _log.warning("the pod's interface %s", problem)
        self._record.unlink(missing_ok=True)


def undo_leftover(record: Path) -> None:
    """Do what a killed runtime has not done, as its `record` says: the namespace's interfaces receive again.

    Nothing happens where it had nothing to undo, or where the namespace is gone.
    """
    try:
        content = parse_json(record.read_text())
        path, interfaces = str(content["namespace"]), dict(content["interfaces"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s can't be read: %s", record, error)
        return
    from kata_runtime.errors import SandboxError

    try:
        with Namespace.at(path) as namespace:
            for problem in namespace.run_now(lambda: disconnect(interfaces)):
                _log.warning("the pod's interface %s", problem)
    except SandboxError:
        pass  # it is gone, and its interfaces with it
    record.unlink(missing_ok=True)
