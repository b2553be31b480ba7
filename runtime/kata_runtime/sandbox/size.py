"""The size of one sandbox's VM while it lives: it follows what its containers may use (docs/decisions/0070)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from kata_runtime.config.model import Config
from kata_runtime.errors import KataError
from kata_runtime.hypervisor.machine import Machine
from kata_runtime.oci.limits import NOTHING, Asked, Limits
from kata_runtime.sandbox.sizing import Sizes, check_update, room_of, vm_sizes
from kata_telemetry.span import Site, Span, use

if TYPE_CHECKING:
    from kata_runtime.guest.agent import AgentClient

__all__ = ["VmSize"]

_trace = Site(package="virtcontainers", subsystem="sandbox")
_log = logging.getLogger("kata.sandbox")


class VmSize:
    """`said` is the size that whoever made the sandbox asks for, `pod` what its containers ask for together as far as
    that was known then; `has` is what the VM was made with. Spans that outlast the call which began them are `root`'s.
    """

    def __init__(self, config: Config, said: Sizes, pod: Asked, has: Sizes, machine: Machine, root: Span) -> None:
        self._config = config
        self._said = said
        self._pod = pod
        self._machine = machine
        self._root = root
        self._static = config.runtime.static_sandbox_resource_mgmt
        self._room = room_of(config, has)
        self._told = has
        self._limits: dict[str, Limits] = {}
        self._lock = asyncio.Lock()
        self._shrinking: set[asyncio.Task[None]] = set()
        self._agent: AgentClient | None = None

    async def begin(self, agent: "AgentClient") -> None:
        """The agent answers: the VM gets what it was not made with, a clone's.

        Raises:
            HypervisorError, AgentError: it does not.
        """
        self._agent = agent
        async with self._lock:
            await self._resize(self._at_least(self._wanted()))

    async def admit(self, container_id: str, spec: Mapping[str, Any]) -> None:
        """A container comes, of this specification; in a VM that keeps its size it has what there is.

        Raises:
            SandboxError: it asks for more than there can be.
            HypervisorError, AgentError: the VM does not get it.
        """
        if self._static:
            return
        async with self._lock:
            resources = (spec.get("linux") or {}).get("resources") or {}
            check_update(resources, self._room, keeps=False)
            self._limits[container_id] = Limits().changed(resources)
            try:
                await self._resize(self._at_least(self._wanted()))
            except BaseException:
                del self._limits[container_id]
                raise

    async def update(
        self, container_id: str, resources: Mapping[str, Any], apply: Callable[[], Awaitable[None]]
    ) -> None:
        """A container's limits change, by `apply`: the VM grows before and shrinks afterwards.

        Raises:
            SandboxError: the VM can't have as much.
            KataError: it does not get it, or `apply` fails; the limits are as they were.
        """
        check_update(resources, self._room, keeps=self._static)
        if self._static:
            await apply()
            return
        async with self._lock:
            before, pod = self._limits.get(container_id, Limits()), self._pod
            self._limits[container_id] = before.changed(resources)
            if self._limits[container_id] != before:
                # What was said of all containers when the pod was made is no longer so.
                self._pod = NOTHING
            try:
                await self._resize(self._at_least(self._wanted()))
                await apply()
            except BaseException:
                self._limits[container_id], self._pod = before, pod
                raise
            finally:
                await self._shrink()

    def leave(self, container_id: str) -> None:
        """A container has gone; what it had goes as well, in time."""
        if self._limits.pop(container_id, None) is None:
            return

        async def shrink() -> None:
            with use(self._root):
                async with self._lock:
                    await self._shrink()

        task = asyncio.create_task(shrink(), name="the VM shrinks")
        self._shrinking.add(task)
        task.add_done_callback(self._shrinking.discard)

    async def close(self) -> None:
        """Nothing is resized any more."""
        for task in self._shrinking:
            task.cancel()
        if self._shrinking:
            await asyncio.wait(self._shrinking)

    def _wanted(self) -> Sizes:
        """Raises SandboxError where one container asks for more than there can be."""
        wanted = vm_sizes(
            self._config, self._said, self._pod, containers=[limits.asked for limits in self._limits.values()]
        )
        return Sizes(min(wanted.vcpus or 1, self._room.vcpus or 1), min(wanted.memory or 0, self._room.memory or 0))

    def _at_least(self, wanted: Sizes) -> Sizes:
        """It grows, and does not shrink."""
        return Sizes(max(wanted.vcpus or 1, self._told.vcpus or 1), max(wanted.memory or 0, self._told.memory or 0))

    async def _shrink(self) -> None:
        """To what is wanted. A guest that lets nothing go harms nobody but itself."""
        try:
            await self._resize(self._wanted())
        except KataError as error:
            _log.warning("the VM keeps its size: %s", error)

    async def _resize(self, wanted: Sizes) -> None:
        if wanted == self._told:
            return
        vcpus, memory = wanted.vcpus or 1, wanted.memory or 0
        with _trace.span("updateResources", vcpus=vcpus, memory_mib=memory) as span:
            # Until it is done nobody knows.
            self._told = Sizes()
            has = await self._machine.resize(vcpus, memory, self._online)
            self._told = wanted
            span.set(has_vcpus=has[0], has_memory_mib=has[1])

    async def _online(self, vcpus: int, memory: bool) -> None:
        from kata_protos import agent_pb2 as pb

        assert self._agent is not None
        request = pb.OnlineCPUMemRequest(wait=True, nb_cpus=vcpus, cpu_only=not memory)
        await self._agent.call(self._agent.service.OnlineCPUMem, request)
