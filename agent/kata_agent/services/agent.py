"""grpc.AgentService of the contract. Handlers translate between messages and the container room, nothing else."""

import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Protocol

from kata_agent.container.hooks import find_hooks
from kata_agent.container.modules import Module
from kata_agent.container.sandbox import DiskNode, Sandbox
from kata_agent.container.spec import check_id, parse, process_of
from kata_agent.guest import machine
from kata_agent.guest.mounts import DRIVERS
from kata_agent.process.process import Ports
from kata_agent.process.sockets import HostSocket
from kata_agent.services.guest import Doors, GuestCalls, storages
from kata_agent.services.health import VERSION
from kata_common.text import is_number
from kata_common.threads import in_thread
from kata_protos import agent_pb2 as pb

__all__ = ["AgentService", "Tracer"]


class Tracer(Protocol):
    """What the service needs of server.tracing; the room above can't be imported."""

    def to_host(self, local_ns: int) -> int:
        """Host time (ns) of a CLOCK_MONOTONIC reading."""
        ...

    def set_offset(self, offset_ns: int, bound_ns: int) -> None: ...

    def forget(self) -> None:
        """All that was recorded and said: this guest becomes a template."""
        ...

    def first_started(self) -> None:
        """A first process runs: tracing may cost time now."""
        ...

    def stream(self) -> AsyncIterator[tuple[bytes, int]]:
        """Batches of ended spans, and how many were dropped, until the end."""
        ...


def _ports(message: pb.StdioPorts) -> Ports:
    return Ports(message.stdin_port, message.stdout_port, message.stderr_port)


def _family(family: int) -> int:
    return socket.AF_INET6 if family == pb.IPFamily.v6 else socket.AF_INET


def _prefix(mask: str) -> int:
    return int(mask) if is_number(mask) else -1


class AgentService(GuestCalls):
    """One method for each call; errors are those of kata_agent.errors. `on_destroyed` is called once, when the sandbox
    has ended and the answer is about to leave."""

    def __init__(self, sandbox: Sandbox, tracer: Tracer, doors: Doors, on_destroyed: Callable[[], None]) -> None:
        self._sandbox = sandbox
        self._doors = doors
        self._tracer = tracer
        self._on_destroyed = on_destroyed

    async def create_sandbox(self, request: pb.CreateSandboxRequest) -> pb.Empty:
        # Only where the clock is the guest's: a test may run the agent on somebody's machine.
        if request.tracing.HasField("clock") and os.getpid() == 1:
            machine.set_time(self._tracer.to_host(time.monotonic_ns()))
        hooks = find_hooks(request.guest_hook_path)
        await self._sandbox.create(
            request.sandbox_id,
            hostname=request.hostname,
            domainname=request.domainname,
            dns=list(request.dns),
            storages=storages(request.storages),
            modules=[Module(m.name, list(m.parameters)) for m in request.kernel_modules],
            share_pid=request.sandbox_pidns,
            hold_pid=request.pidns_holder,
        )
        self._sandbox.hooks = hooks
        if request.debug_console:
            self._doors.open_console()
        return pb.Empty()

    async def destroy_sandbox(self, _: pb.DestroySandboxRequest) -> pb.Empty:
        await self._sandbox.destroy()
        self._on_destroyed()
        return pb.Empty()

    async def forget_sandbox(self, _: pb.ForgetSandboxRequest) -> pb.Empty:
        await self._sandbox.forget()
        self._doors.forget()
        self._tracer.forget()
        # What lives now lives in every clone: a collection there need not look at it, nor write to its pages.
        gc.collect()
        gc.freeze()
        return pb.Empty()

    async def create_container(self, request: pb.CreateContainerRequest) -> pb.Empty:
        await self._sandbox.create_container(
            request.container_id,
            parse(request.oci, "the OCI specification"),
            storages(request.storages),
            _ports(request.stdio),
            share_pid=request.sandbox_pidns,
            directories=list(request.directories),
            sockets=[HostSocket(s.number, s.path, s.mode, s.uid, s.gid) for s in request.sockets],
            disks=[DiskNode(d.id, d.type, d.container_path, d.mode, (d.uid, d.gid), d.access) for d in request.devices],
        )
        return pb.Empty()

    async def start_container(self, request: pb.StartContainerRequest) -> pb.Empty:
        await self._sandbox.container(request.container_id).start()
        self._tracer.first_started()
        return pb.Empty()

    async def remove_container(self, request: pb.RemoveContainerRequest) -> pb.Empty:
        await self._sandbox.remove_container(request.container_id, request.timeout)
        return pb.Empty()

    async def stats_container(self, request: pb.StatsContainerRequest) -> pb.StatsContainerResponse:
        from kata_agent.guest.network import counters

        return pb.StatsContainerResponse(
            files=self._sandbox.container(request.container_id).cgroup.stats(),
            network_stats=[pb.NetworkStats(**entry._asdict()) for entry in counters()],
        )

    async def pause_container(self, request: pb.PauseContainerRequest) -> pb.Empty:
        await self._sandbox.container(request.container_id).pause()
        return pb.Empty()

    async def resume_container(self, request: pb.ResumeContainerRequest) -> pb.Empty:
        await self._sandbox.container(request.container_id).resume()
        return pb.Empty()

    async def update_container(self, request: pb.UpdateContainerRequest) -> pb.Empty:
        container = self._sandbox.container(request.container_id)
        await container.update(parse(request.resources, "resources"))
        return pb.Empty()

    async def exec_process(self, request: pb.ExecProcessRequest) -> pb.Empty:
        container = self._sandbox.container(request.container_id)
        check_id(request.exec_id, "exec id")
        process = process_of(parse(request.process, "process"), "process")
        await container.exec(request.exec_id, process, _ports(request.stdio))
        return pb.Empty()

    async def signal_process(self, request: pb.SignalProcessRequest) -> pb.Empty:
        container = self._sandbox.container(request.container_id)
        if request.all:
            container.signal_all(request.signal, ending=request.ending)
        else:
            container.process(request.exec_id).signal(request.signal, ending=request.ending)
        return pb.Empty()

    async def wait_process(self, request: pb.WaitProcessRequest) -> pb.WaitProcessResponse:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        exit = await process.wait()  # noqa: A001 - it is what it is
        return pb.WaitProcessResponse(
            status=exit.status, exited_at_ns=self._tracer.to_host(exit.ended_ns), oom_killed=exit.oom_killed
        )

    async def list_processes(self, request: pb.ListProcessesRequest) -> pb.ListProcessesResponse:
        return pb.ListProcessesResponse(pids=self._sandbox.container(request.container_id).cgroup.pids())

    async def close_stdin(self, request: pb.CloseStdinRequest) -> pb.Empty:
        self._sandbox.container(request.container_id).process(request.exec_id).close_stdin()
        return pb.Empty()

    async def tty_win_resize(self, request: pb.TtyWinResizeRequest) -> pb.Empty:
        process = self._sandbox.container(request.container_id).process(request.exec_id)
        process.resize(request.row, request.column)
        return pb.Empty()

    async def update_interface(self, request: pb.UpdateInterfaceRequest) -> pb.Interface:
        from kata_agent.guest.network import Address, Interface
        from kata_common.netlink import IFF_NOARP

        message = request.interface
        addresses = [Address(_family(a.family), a.address, _prefix(a.mask)) for a in message.IPAddresses]
        noarp = bool(message.raw_flags & IFF_NOARP)
        wanted = Interface(message.hwAddr, message.name, message.mtu, addresses, noarp)
        message.device = await self._sandbox.network.update_interface(wanted)
        return message

    async def update_routes(self, request: pb.UpdateRoutesRequest) -> pb.Routes:
        from kata_agent.guest.network import Route

        self._sandbox.network.update_routes(
            Route(_family(r.family), r.dest, r.gateway, r.device, r.source, r.scope, r.flags, r.protocol, r.priority)
            for r in request.routes.Routes
        )
        return request.routes

    async def add_arp_neighbors(self, request: pb.AddARPNeighborsRequest) -> pb.Empty:
        from kata_agent.guest.network import Neighbour

        self._sandbox.network.add_neighbours(
            Neighbour(_family(n.toIPAddress.family), n.toIPAddress.address, n.device, n.lladdr, n.state, n.flags)
            for n in request.neighbors.ARPNeighbors
        )
        return pb.Empty()

    async def get_guest_details(self, _: pb.GuestDetailsRequest) -> pb.GuestDetailsResponse:
        details = machine.details(await self._sandbox.crun_version())
        return pb.GuestDetailsResponse(
            mem_total_bytes=details.memory,
            cpus_online=details.cpus,
            kernel=details.kernel,
            agent_details=pb.AgentDetails(
                version=VERSION,
                init_daemon=details.init,
                storage_handlers=DRIVERS,
                supports_seccomp=details.seccomp,
                python=details.python,
                crun=details.crun,
            ),
        )

    async def set_guest_date_time(self, request: pb.SetGuestDateTimeRequest) -> pb.Empty:
        if request.Sec or request.Usec:
            machine.set_time(request.Sec * 1_000_000_000 + request.Usec * 1000)
        if request.HasField("clock"):
            self._tracer.set_offset(request.clock.offset_ns, request.clock.bound_ns)
        return pb.Empty()

    async def reseed_random_dev(self, request: pb.ReseedRandomDevRequest) -> pb.Empty:
        machine.reseed(request.data)
        return pb.Empty()

    async def get_oom_event(self, _: pb.GetOOMEventRequest) -> pb.OOMEvent:
        return pb.OOMEvent(container_id=await self._sandbox.next_oom())

    async def online_cpu_mem(self, request: pb.OnlineCPUMemRequest) -> pb.Empty:
        await self._sandbox.online(request.nb_cpus, memory=not request.cpu_only, wait=request.wait)
        return pb.Empty()

    async def mem_hotplug_by_probe(self, request: pb.MemHotplugByProbeRequest) -> pb.Empty:
        from kata_agent.guest.growth import Growth

        Growth().probe(request.memHotplugProbeAddr)
        return pb.Empty()

    async def get_volume_stats(self, request: pb.GetVolumeStatsRequest) -> pb.VolumeStatsResponse:
        from kata_agent.guest.disks import usage

        found = usage(request.volume_guest_path)
        units = pb.VolumeUsage
        return pb.VolumeStatsResponse(
            usage=[
                units(available=found.available, total=found.total, used=found.used, unit=units.BYTES),
                units(available=found.inodes_available, total=found.inodes, used=found.inodes_used, unit=units.INODES),
            ],
            volume_condition=pb.VolumeCondition(message="mounted"),
        )

    async def resize_volume(self, request: pb.ResizeVolumeRequest) -> pb.Empty:
        from kata_agent.guest.disks import grow

        await in_thread("grow", partial(grow, request.volume_guest_path, request.size))
        return pb.Empty()

    async def set_tracing(self, _: pb.SetTracingRequest) -> pb.Empty:
        # The funnel has already seen to it: it reads the setting of any request before it opens the span.
        return pb.Empty()

    async def stream_spans(self, _: pb.StreamSpansRequest) -> AsyncIterator[pb.SpanBatch]:
        async for otlp, dropped in self._tracer.stream():
            yield pb.SpanBatch(otlp=otlp, dropped=dropped)
