"""A sandbox's whole life, without a VM and without root: the machine and the agent are fakes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from kata_protos import agent_pb2 as pb
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.errors import AgentError, BootError, HypervisorError, SandboxError
from kata_runtime.sandbox.rootfs import Rootfs
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions, SandboxState
from kata_runtime.sandbox.state import Directories
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.trace import SandboxTrace
from kata_runtime.sandbox.trace.state import Tracing
from kata_telemetry.span import use
from kata_traces.read.trace import Trace, load_store
from kata_traces.store.store import Store
from support.fake_guest import FakeGuest

BOOTED = ("Linux version 6.1", "kata: initramfs")


class Life:
    """A sandbox of this directory; `trace` is what is left of it."""

    def __init__(self, root: Path, guest: FakeGuest, *, patience: float, answers_within: float, traced: bool) -> None:
        for name in ("kernel", "initrd", "image"):
            (root / name).touch()
        qemu = QemuConfig(kernel=str(root / "kernel"), initrd=str(root / "initrd"), image=str(root / "image"))
        agent = AgentConfig(
            enable_tracing=traced, dial_timeout=patience, health_check_request_timeout_ms=round(answers_within * 1000)
        )
        config = Config(qemu, agent, RuntimeConfig(enable_tracing=traced, trace_dir=str(root / "traces")))
        self.root = root
        self.guest = guest
        self.tracing = SandboxTrace.open(config, "s1", command="test")
        directories = Directories(root / "run", root / "layers")
        options = SandboxOptions(directories=directories, image_dir=root, obtain_vm=guest.obtain)
        self.sandbox = Sandbox("s1", config, self.tracing, options)

    def trace(self) -> Trace:
        loaded = load_store(Store(self.root / "traces/s1"))
        assert loaded is not None
        return loaded

    def state(self) -> Tracing:
        """Which sides are traced."""
        return self.tracing.state

    def left(self) -> list[Path]:
        """What is on the host of it."""
        return [path for name in ("run", "layers") for path in (self.root / name).glob("*")]


@asynccontextmanager
async def life(
    guest: FakeGuest, root: Path, *, patience: float = 5, answers_within: float = 30, traced: bool = True
) -> AsyncIterator[Life]:
    """For the block; whatever happens in it, nothing is left and the trace is whole."""
    lived = Life(root, guest, patience=patience, answers_within=answers_within, traced=traced)
    error: BaseException | None = None
    try:
        with use(lived.tracing.root):
            yield lived
    except BaseException as raised:
        error = raised
        raise
    finally:
        with use(lived.tracing.root):
            await lived.sandbox.stop()
        lived.tracing.close("error" if error else "exit 0", error)
        assert lived.sandbox.state is SandboxState.STOPPED
        assert lived.left() == []
        assert guest.shared == {}
        assert guest.machine.end is not None
        assert [span.name for span in lived.trace().spans if span.open] == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


async def test_start_containers_and_stop(root: Path) -> None:
    guest = FakeGuest()
    async with life(guest, root) as lived:
        sandbox = lived.sandbox
        await sandbox.start()
        assert sandbox.state is SandboxState.READY
        assert sandbox.pid == guest.machine.pid
        first = await sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        with pytest.raises(SandboxError, match="there is a container 'c1' already"):
            await sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        await sandbox.create_container("c2", {}, Rootfs(root), Stdio())
        assert guest.shared.keys() == {"c1", "c2"}
        await first.start()
        waiting = asyncio.create_task(sandbox.wait_container(first))
        guest.agent.end("c1", status=7)
        assert await waiting == 7
        await sandbox.remove_container(first)
        assert guest.shared.keys() == {"c2"}
        assert sandbox.containers.keys() == {"c2"}
    assert guest.agent.calls[-1] == "DestroySandbox"
    assert guest.agent.calls.count("RemoveContainer") == 2
    names = {span.name for span in lived.trace().spans}
    assert {"rootSpan", "StartVM", "waitVM", "boot.fake", "createContainer", "stopSandbox", "StopVM"} <= names


async def test_a_container_that_can_t_be_created(root: Path) -> None:
    guest = FakeGuest()
    guest.agent.refuse["CreateContainer"] = grpc.StatusCode.INTERNAL
    async with life(guest, root) as lived:
        await lived.sandbox.start()
        with pytest.raises(AgentError, match="CreateContainer is refused"):
            await lived.sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        assert (guest.shared, lived.sandbox.containers) == ({}, {})


async def test_the_machine_dies(root: Path) -> None:
    guest = FakeGuest()
    async with life(guest, root) as lived:
        sandbox = lived.sandbox
        await sandbox.start()
        container = await sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        await container.start()
        waiting = asyncio.create_task(sandbox.wait_container(container))
        await asyncio.sleep(0)
        guest.machine.die(-11, "a bug")
        await sandbox.vm_ended()
        with pytest.raises(HypervisorError, match=r"ended while a container .*signal 11\); fake said: a bug"):
            await waiting


async def test_an_agent_that_hangs_ends_the_machine(root: Path) -> None:
    guest = FakeGuest()
    async with life(guest, root, answers_within=0.02) as lived, asyncio.timeout(5):
        sandbox = lived.sandbox
        await sandbox.start()
        container = await sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        await container.start()
        guest.agent.mute = True
        with pytest.raises(HypervisorError, match=r"the agent has not answered for 0\.02 s"):
            await sandbox.wait_container(container)


async def test_a_boot_that_ends(root: Path) -> None:
    guest = FakeGuest((*BOOTED, "Kernel panic - not syncing: no init"), dies=0)
    with pytest.raises(BootError, match="came as far as: initramfs") as caught:
        async with life(guest, root) as lived:
            await lived.sandbox.start()
    assert "Kernel panic" in str(caught.value)
    assert "its last words" in str(caught.value)
    assert "kernel_params" in caught.value.hint
    [failed] = [span for span in lived.trace().spans if span.name == "boot.initramfs"]
    assert failed.failed
    assert guest.agent.calls == []


async def test_a_boot_that_hangs(root: Path) -> None:
    guest = FakeGuest(BOOTED)
    with pytest.raises(BootError, match=r"did not become ready within 0\.02 s"):
        async with life(guest, root, patience=0.02) as lived:
            await lived.sandbox.start()


async def test_an_agent_that_refuses_the_sandbox(root: Path) -> None:
    guest = FakeGuest()
    guest.agent.refuse["CreateSandbox"] = grpc.StatusCode.INTERNAL
    with pytest.raises(AgentError, match="CreateSandbox is refused"):
        async with life(guest, root) as lived:
            await lived.sandbox.start()


async def test_whoever_waits_for_the_start_goes_away(root: Path) -> None:
    guest = FakeGuest(BOOTED)
    with pytest.raises(TimeoutError):
        async with life(guest, root) as lived, asyncio.timeout(0.02):
            await lived.sandbox.start()
    assert guest.machine.end is not None


async def test_no_call_out_of_order(root: Path) -> None:
    guest = FakeGuest()
    async with life(guest, root) as lived:
        with pytest.raises(SandboxError, match="is new, not ready"):
            await lived.sandbox.create_container("c1", {}, Rootfs(root), Stdio())
        await lived.sandbox.start()
        with pytest.raises(SandboxError, match="is ready, not new"):
            await lived.sandbox.start()


async def test_tracing_that_is_switched_on_late_has_the_boot_by_the_agent(root: Path) -> None:
    """Both sides have recorded it, and the agent's account is the finer one."""
    guest = FakeGuest()
    async with life(guest, root, traced=False) as lived:
        sandbox, told = lived.sandbox, guest.agent.requests
        await sandbox.start()
        assert lived.state() is Tracing.RECORDING
        assert [request.tracing.enabled for request in told if isinstance(request, pb.CreateSandboxRequest)] == [False]
        with pytest.raises(SandboxError, match="belong under the runtime's"):
            await sandbox.switch_tracing(runtime=False, agent=True)
        await sandbox.switch_tracing(runtime=True, agent=True)
        assert lived.state() is Tracing.BOTH
        [setting] = [request.tracing for request in told if isinstance(request, pb.SetTracingRequest)]
        assert (setting.enabled, setting.since_ns) == (True, 0)
    names = [span.name for span in lived.trace().spans]
    assert "boot.fake" in names
    assert "boot.kernel" not in names


async def test_an_agent_that_does_not_take_its_setting_leaves_the_runtime_traced(root: Path) -> None:
    guest = FakeGuest()
    guest.agent.refuse["SetTracing"] = grpc.StatusCode.INTERNAL
    async with life(guest, root, traced=False) as lived:
        await lived.sandbox.start()
        with pytest.raises(AgentError, match="SetTracing is refused"):
            await lived.sandbox.switch_tracing(runtime=True, agent=True)
        assert lived.state() is Tracing.RUNTIME
        await lived.sandbox.switch_tracing(runtime=False, agent=False)
        assert lived.state() is Tracing.RECORDING
