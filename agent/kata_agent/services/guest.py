"""Calls about the guest itself, each by a module that is imported when it is called: few sandboxes need any of them."""

import socket
from collections.abc import Iterable
from typing import Protocol

from kata_agent.container.sandbox import Sandbox
from kata_agent.errors import InvalidError
from kata_agent.guest.mounts import Storage
from kata_protos import agent_pb2 as pb

__all__ = ["Doors", "GuestCalls", "storages"]


class Doors(Protocol):
    """Ways into the guest, which the room above has: what may come in, and what else is open."""

    def set_policy(self, text: str) -> None:
        """Answer only what the policy allows from now on. Raises InvalidError."""
        ...

    def open_console(self) -> None:
        """Let the host have a shell. Raises SetupError."""
        ...

    def forget(self) -> None:
        """Be as at the start: this guest becomes a template."""
        ...


def storages(messages: Iterable[pb.Storage]) -> list[Storage]:
    """The contract's storages."""
    return [Storage(m.driver, m.source, m.fstype, list(m.options), m.mount_point) for m in messages]


def _family(family: int) -> pb.IPFamily:
    return pb.IPFamily.v6 if family == socket.AF_INET6 else pb.IPFamily.v4


class GuestCalls:
    """A part of `AgentService`."""

    _sandbox: Sandbox
    _doors: Doors

    async def update_ephemeral_mounts(self, request: pb.UpdateEphemeralMountsRequest) -> pb.Empty:
        await self._sandbox.update_memory(storages(request.storages))
        return pb.Empty()

    async def get_diagnostic_data(self, request: pb.GetDiagnosticDataRequest) -> pb.GetDiagnosticDataResponse:
        if request.log_type != "termination_log":
            raise InvalidError(f"there is no log_type {request.log_type[:40]!r}; there is termination_log")
        said = self._sandbox.container(request.container_id).termination_message()
        return pb.GetDiagnosticDataResponse(data=said)

    async def list_interfaces(self, _: pb.ListInterfacesRequest) -> pb.Interfaces:
        from kata_agent.guest.listing import interfaces

        return pb.Interfaces(
            Interfaces=[
                pb.Interface(
                    device=entry.name,
                    name=entry.name,
                    IPAddresses=[
                        pb.IPAddress(family=_family(a.family), address=a.address, mask=str(a.prefix))
                        for a in entry.addresses
                    ],
                    mtu=entry.mtu,
                    hwAddr=entry.mac,
                    raw_flags=entry.flags,
                )
                for entry in interfaces()
            ]
        )

    async def list_routes(self, _: pb.ListRoutesRequest) -> pb.Routes:
        from kata_agent.guest.listing import routes

        return pb.Routes(
            Routes=[
                pb.Route(
                    dest=route.destination,
                    gateway=route.gateway,
                    device=route.device,
                    source=route.source,
                    scope=route.scope,
                    family=_family(route.family),
                    flags=route.flags,
                    protocol=route.protocol,
                    priority=route.priority,
                )
                for route in routes()
            ]
        )

    async def get_ip_tables(self, request: pb.GetIPTablesRequest) -> pb.GetIPTablesResponse:
        return pb.GetIPTablesResponse(data=await self._sandbox.firewall.save(v6=request.is_ipv6))

    async def set_ip_tables(self, request: pb.SetIPTablesRequest) -> pb.SetIPTablesResponse:
        return pb.SetIPTablesResponse(data=await self._sandbox.firewall.restore(request.data, v6=request.is_ipv6))

    async def get_metrics(self, _: pb.GetMetricsRequest) -> pb.Metrics:
        from kata_agent.guest.metrics import exposition

        return pb.Metrics(metrics=exposition())

    async def copy_file(self, request: pb.CopyFileRequest) -> pb.Empty:
        from kata_agent.guest.files import Part, copy
        from kata_common.threads import in_thread

        part = Part(
            path=request.path,
            size=request.file_size,
            mode=request.file_mode,
            parents_mode=request.dir_mode,
            uid=request.uid,
            gid=request.gid,
            offset=request.offset,
            data=request.data,
        )
        await in_thread("copy", lambda: copy(part))
        return pb.Empty()

    async def set_policy(self, request: pb.SetPolicyRequest) -> pb.Empty:
        self._doors.set_policy(request.policy)
        return pb.Empty()

    async def add_swap(self, request: pb.AddSwapRequest) -> pb.Empty:
        from kata_agent.guest import swap

        swap.add(swap.disk_at(request.PCIPath))
        return pb.Empty()

    async def add_swap_path(self, request: pb.AddSwapPathRequest) -> pb.Empty:
        from kata_agent.guest import swap

        swap.add(request.path)
        return pb.Empty()
