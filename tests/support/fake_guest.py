"""A VM that is not there, with an agent in this process that runs nothing: a sandbox's life in milliseconds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any

import grpc
from grpc.aio import AioRpcError, Metadata

from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_runtime.guest.agent import AgentClient
from kata_runtime.hypervisor.fake import BOOTS, FakeHypervisor, FakeMachine
from kata_runtime.hypervisor.machine import MachineSpec, Surroundings
from kata_runtime.sandbox.rootfs import Rootfs
from kata_runtime.sandbox.vm import Vm, VmRequest
from kata_runtime.sandbox.volumes import Shown
from support.clocks import answering
from support.fake_transport import FakeTransport, Handler

__all__ = ["FakeAgent", "FakeGuest"]


class FakeAgent:
    """An agent's side of a gRPC channel. `requests` are those that it got, in order.

    A process ends when `end` says so, or by a signal. `refuse` has calls that fail, and their status. While `mute` it
    answers nothing. `batches` are its spans.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.refuse: dict[str, grpc.StatusCode] = {}
        self.mute = False
        self.batches: list[pb.SpanBatch] = []
        self._destroyed = asyncio.Event()
        self._ends: dict[tuple[str, str], asyncio.Future[int]] = {}

    @property
    def calls(self) -> list[str]:
        """The names of the calls, but for those that ask whether it is there."""
        names = [type(request).__name__.removesuffix("Request") for request in self.requests]
        return [name for name in names if name != "Check"]

    def end(self, container_id: str, exec_id: str = "", status: int = 0) -> None:
        """A process ends."""
        ended = self._end(container_id, exec_id)
        if not ended.done():
            ended.set_result(status)

    def client(self) -> AgentClient:
        """The runtime's real client, whose channel ends here."""
        channel: Any = self  # as much of one as stubs need
        return AgentClient(channel)

    def unary_unary(self, path: str, **_: object) -> Callable[..., Awaitable[object]]:
        """A method of the channel: its calls are tasks, which are as good as gRPC's to their caller."""
        name = path.rpartition("/")[2]
        return lambda request, timeout, **_: asyncio.create_task(self._within(timeout, self._answer(name, request)))

    def unary_stream(self, _path: str, **_: object) -> Callable[[object], AsyncIterator[pb.SpanBatch]]:
        """The only stream is that of its spans."""
        return self._spans

    async def _spans(self, request: object) -> AsyncIterator[pb.SpanBatch]:
        self.requests.append(request)
        await self._destroyed.wait()
        for batch in self.batches:
            yield batch

    async def _within(self, timeout: float | None, answer: Awaitable[object]) -> object:
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise _refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None

    async def _answer(self, name: str, request: Any) -> object:
        self.requests.append(request)
        if self.mute:
            await asyncio.Event().wait()
        if name in self.refuse:
            raise _refusal(self.refuse[name], f"{name} is refused")
        match name:
            case "WaitProcess":
                return pb.WaitProcessResponse(status=await self._end(request.container_id, request.exec_id))
            case "SignalProcess":
                self.end(request.container_id, request.exec_id, 128 + request.signal)
            case "RemoveContainer":
                for container_id, exec_id in self._ends:
                    if container_id == request.container_id:
                        self.end(container_id, exec_id, 137)
            case "DestroySandbox":
                self._destroyed.set()
        return pb.Empty()

    def _end(self, container_id: str, exec_id: str) -> asyncio.Future[int]:
        if (container_id, exec_id) not in self._ends:
            self._ends[container_id, exec_id] = asyncio.get_running_loop().create_future()
        return self._ends[container_id, exec_id]


def _refusal(code: grpc.StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details)


class _Hypervisor(FakeHypervisor):
    """With `dies`, its machines end with that status once they have said what they say."""

    def __init__(self, says: Sequence[str], dies: int | None) -> None:
        super().__init__(says)
        self._dies = dies

    @asynccontextmanager
    async def launch(self, spec: MachineSpec, where: Surroundings) -> AsyncIterator[FakeMachine]:
        async with super().launch(spec, where) as machine:
            if self._dies is not None:
                machine.die(self._dies, "its last words")
            yield machine


class FakeGuest:
    """Gives sandboxes their VMs (`StartVm`); `machine`, `agent` and `shared` are the last one's."""

    def __init__(self, says: Sequence[str] = BOOTS, *, dies: int | None = None) -> None:
        self.agent = FakeAgent()
        self.shared: dict[str, Rootfs] = {}
        self._hypervisor = _Hypervisor(says, dies)

    @property
    def machine(self) -> FakeMachine:
        return self._hypervisor.machines[-1]

    @asynccontextmanager
    async def obtain(self, request: VmRequest) -> AsyncIterator[Vm]:
        """See StartVm."""
        ports: dict[int, Handler] = {Port.CLOCK: answering(lambda *times: times), Port.STDIO: _silent}
        artifacts, memory = request.artifacts, request.sizes.memory or request.config.hypervisor.default_memory
        spec = MachineSpec(
            name=request.directory.sandbox_id,
            kernel=artifacts.kernel,
            initrd=artifacts.initrd,
            image=artifacts.image,
            memory=memory,
            vcpus=1,
        )
        async with AsyncExitStack() as stack:
            transport = await stack.enter_async_context(FakeTransport(ports))
            where = Surroundings(on_console=request.on_console)
            machine = await stack.enter_async_context(self._hypervisor.launch(spec, where))
            yield Vm(machine, transport, lambda: nullcontext(self.agent.client()), self._share)

    @contextmanager
    def _share(self, container_id: str, rootfs: Rootfs) -> Iterator[Shown]:
        self.shared[container_id] = rootfs
        try:
            yield Shown()
        finally:
            del self.shared[container_id]


async def _silent(*_: object) -> None:
    """A stdio stream that has nothing to say, and ends."""
