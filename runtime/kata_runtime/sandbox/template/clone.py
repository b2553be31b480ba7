"""How a sandbox comes by its VM where there may be a template: a clone of it, else by booting one.

A clone gets its devices while it is paused: vsock, the shared directory, the network's. Whatever is wrong with a
template or with the clone is told, and the guest boots as ever.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from kata_common.contract import Port
from kata_common.places import AGENT_SOCKET, PORTS, VSOCK_SOCKET
from kata_runtime.cage import put_into
from kata_runtime.errors import HypervisorError, KataError, TemplateError
from kata_runtime.hypervisor.boot import BootStage
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.hypervisor.machine import Hypervisor, Machine, Terms
from kata_runtime.process import Privileges
from kata_runtime.sandbox.sizing import base_of, room_of
from kata_runtime.sandbox.template.key import key_of
from kata_runtime.sandbox.template.meta import Meta
from kata_runtime.sandbox.template.spare import Spare, spare_for
from kata_runtime.sandbox.template.store import Template, TemplateStore
from kata_runtime.sandbox.vm import Served, Vm, VmRequest, boot_vm, machine_spec, serve_vm, surroundings
from kata_telemetry.span import Site, SpanContext, current

__all__ = ["Origin", "clone_vm", "obtain_vm"]

_trace = Site(package="virtcontainers", subsystem="factory")
_log = logging.getLogger("kata.template")

# Seconds for a clone's agent to answer. It has done all that before, so a cold start would take longer.
_PATIENCE = 15.0
# What a VM's helpers have in its directory.
_WAYS = (AGENT_SOCKET, PORTS, VSOCK_SOCKET)


class Origin(StrEnum):
    """Where a VM came from; the trace's root says so as `start_path`."""

    COLD = "cold"
    TEMPLATE = "template"
    POOL = "pool"


@asynccontextmanager
async def obtain_vm(request: VmRequest) -> AsyncIterator[Vm]:
    """See `StartVm`. What there is to say of where it came from is in the VM.

    Raises:
        HostError, HypervisorError: as a boot.
    """
    hypervisor = hypervisor_of(request.config)
    async with AsyncExitStack() as stack:
        terms = stack.enter_context(hypervisor.prepared(request.directory.sandbox_id))
        reason = _unlike(request)
        # What it is larger by it gets when it runs.
        ordinary = replace(request, sizes=base_of(request.config))
        found = _Against(reason) if reason else await _cloned(stack, ordinary, hypervisor, terms)
        if isinstance(found, Vm):
            yield found
            return
        booted = await stack.enter_async_context(boot_vm(request, hypervisor, terms))
        wanting = request if found.missing else None
        yield replace(booted, origin=Origin.COLD, reason=found.reason, wanting=wanting)


@dataclass(frozen=True)
class _Against:
    """What stands against a clone; with `missing` a template should be made when there is time."""

    reason: str
    missing: bool = False


async def _cloned(stack: AsyncExitStack, request: VmRequest, hypervisor: Hypervisor, terms: Terms) -> Vm | _Against:
    """A clone, or why there is none."""
    template = None
    try:
        store = TemplateStore.at(request.config.factory.template_path)
    except TemplateError as error:
        # So is this host: nothing has gone wrong, and nobody wants to hear it at each start.
        return _Against(str(error))
    try:
        with _trace.span("findTemplate") as span:
            key = key_of(request, hypervisor)
            spare = spare_for(key.digest)
            if spare is None:
                template = store.find(key.digest)
            span.set(template=key.digest[:12], found=template is not None or spare is not None)
        if spare is not None:
            vm = await stack.enter_async_context(spare_vm(request, terms, spare))
            return _told(vm, Origin.POOL, spare.meta)
        if template is None:
            return _Against("there is no template yet", missing=True)
        with template:
            vm = await stack.enter_async_context(clone_vm(request, hypervisor, terms, template))
            return _told(vm, Origin.TEMPLATE, template.meta)
    except (KataError, OSError) as error:
        _log.warning("the guest boots, because it could not be cloned: %s", error)
        current().event("templateFailed", reason=str(error)[:512])
        if template is not None:
            _discard(store, template)
        return _Against(f"it failed: {error}", missing=template is not None or isinstance(error, TemplateError))


def _told(vm: Vm, origin: Origin, meta: Meta) -> Vm:
    return replace(vm, origin=origin, link=SpanContext.from_traceparent(meta.trace) if meta.trace else None)


def _unlike(request: VmRequest) -> str:
    """Why the guest is to be no clone; empty where it may be one.

    It is as the configuration has it, or larger by what it can get while it runs: else there would be a template for
    each size asked for.
    """
    if not request.config.factory.enable_template:
        return "[factory] enable_template = false"
    base, sizes = base_of(request.config), request.sizes
    room = room_of(request.config, base)
    wanted = ((base.vcpus, sizes.vcpus, room.vcpus), (base.memory, sizes.memory, room.memory))
    if all((least or 0) <= (asked or least or 0) <= (most or 0) for least, asked, most in wanted):
        return ""
    return f"it is of another size than the configuration's {base.vcpus} CPUs and {base.memory} MiB"


def _discard(store: TemplateStore, template: Template) -> None:
    """A template whose clone did not come up is not tried again."""
    with suppress(KataError, OSError), store.locked() as directory:
        store.remove(directory, template.meta.key)


@asynccontextmanager
async def clone_vm(request: VmRequest, hypervisor: Hypervisor, terms: Terms, template: Template) -> AsyncIterator[Vm]:
    """A VM that goes on where the template stopped; its agent answers when this yields.

    Raises:
        HypervisorError, TemplateError, HostError, OSError: it does not; the network is still to be had by another.
    """
    memory = template.new_memory()
    # In a thread: sendfile lets go of the interpreter's lock.
    copying = asyncio.ensure_future(asyncio.to_thread(template.copy_memory, memory))

    async def before() -> None:
        with _trace.stage("copyMemory"):
            await asyncio.shield(copying)
        await (request.verified or _nothing)()

    try:
        _give(memory, terms.privileges)
        async with serve_vm(request, terms) as served:
            spec = replace(machine_spec(request), hotplug=True, memory_fd=memory, saved_fd=template.state_fd)
            where = replace(surroundings(request), before=before)
            machine = await served.stack.enter_async_context(hypervisor.launch(spec, where))
            os.close(memory)
            memory = -1
            await served.unless_helpers_end(_plug(machine, served, request, terms))
            await machine.resume()
            vm = served.vm(machine, spec)
            await _answers(vm, request)
            if request.network is not None:
                request.network.lend_no_more()
            yield vm
    finally:
        if memory >= 0:
            with suppress(KataError, OSError):
                await copying
            os.close(memory)


@asynccontextmanager
async def spare_vm(request: VmRequest, terms: Terms, spare: Spare) -> AsyncIterator[Vm]:
    """The VM that this process has had ready, with what the sandbox needs besides.

    Raises:
        HypervisorError, HostError: a device can't be had, or its place among the cgroups; the VM has ended.
    """
    async with spare.stack:
        vm = spare.vm
        put_into(request.cages.machine, vm.machine.pid)
        for helper in vm.helpers:
            put_into(request.cages.helpers, helper.pid)
        vm.machine.boot.hear(request.on_console)
        # Where others look for the way into the guest.
        for name in _WAYS:
            if (spare.directory / name).exists():
                (request.directory.run / name).symlink_to(spare.directory / name)
        with _trace.stage("HotplugDevices"):
            await _plug_network(vm.machine, request, terms)
        if request.network is not None:
            request.network.lend_no_more()
        await (request.meanwhile or _nothing)()
        await (request.verified or _nothing)()
        yield vm


async def _nothing() -> None:
    pass


def _give(memory: int, privileges: Privileges | None) -> None:
    """The copy is the hypervisor's user's alone."""
    os.fchmod(memory, 0o600)
    if privileges is not None:
        os.fchown(memory, privileges.uid, privileges.gid)


async def _plug(machine: Machine, served: Served, request: VmRequest, terms: Terms) -> None:
    with _trace.stage("HotplugDevices"):
        for device in served.devices:
            await machine.plug(device)
        await _plug_network(machine, request, terms)


async def _plug_network(machine: Machine, request: VmRequest, terms: Terms) -> None:
    if request.network is not None:
        with ExitStack() as cards:
            for card in request.network.devices(cards, vhost=terms.vhost_net, lend=True):
                await machine.plug(card)


async def _answers(vm: Vm, request: VmRequest) -> None:
    """Wait until the agent is there; what else is to be done is done meanwhile."""
    with _trace.stage("waitVM"):
        dialling = asyncio.create_task(vm.transport.connect(Port.CLOCK))
        ended = asyncio.create_task(vm.machine.wait())
        try:
            if request.meanwhile is not None:
                await request.meanwhile()
            await asyncio.wait({dialling, ended}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not dialling.done():
                how = f"ended ({ended.result()})" if ended.done() else f"did not answer within {_PATIENCE:g} s"
                raise HypervisorError(f"the clone {how}")
            stream, _ = dialling.result()
            stream.close()
        finally:
            dialling.cancel()
            ended.cancel()
    vm.machine.boot.reached(BootStage.READY, time.monotonic_ns())
