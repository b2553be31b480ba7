"""The one sandbox of a shim: its configuration, its trace, its start and its end."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.runtimeoptions_pb2 import Options
from kata_runtime.config import Config, load
from kata_runtime.errors import KataError
from kata_runtime.oci.network import network_namespace
from kata_runtime.oci.spec import Spec
from kata_runtime.sandbox.hooks import AFTER_END, BEFORE_START, HookState, run_hooks
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions, SandboxState
from kata_runtime.sandbox.tracing import SandboxTrace
from kata_runtime.shim import grouping
from kata_runtime.shim.service import Shim
from kata_runtime.shim.ttrpc.errors import FailedPrecondition, InvalidArgument
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.span import NO_SPAN, Site, Span, use

__all__ = ["Pod"]

_trace = Site(package="containerdshim", subsystem="task")
_log = logging.getLogger("kata.shim")

# sethostname(2).
_HOSTNAME_LENGTH = 64


class Pod:
    """Begins with the first container's `Create`, ends with that container, and never begins again."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._made = time.monotonic_ns()
        self._config: Config | None = None
        self._trace: SandboxTrace | None = None
        self._problem: KataError | None = None
        self._sandbox: Sandbox | None = None
        self._spec: Spec = {}
        self._bundle = Path()
        # Without the call that happens to begin something: what goes on later is nobody's in particular.
        self._context = contextvars.copy_context()
        self._memory_watch: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._outcome = "never started"
        self._failure: BaseException | None = None

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self._shim.launch.group.sandbox_id

    @property
    def pid(self) -> int:
        """The VM's process id, which stands for all processes in it; 0 where there is none."""
        return self._sandbox.pid if self._sandbox else 0

    @property
    def config(self) -> Config:
        """The configuration; the sandbox must have begun."""
        assert self._config is not None
        return self._config

    @property
    def root(self) -> Span:
        """The root of the sandbox's trace."""
        return self._trace.root if self._trace else NO_SPAN

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox, which is ready.

        Raises:
            FailedPrecondition: there is none yet, or no more.
        """
        if self._sandbox is None or self._sandbox.state is not SandboxState.READY or self._ending is not None:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        return self._sandbox

    @property
    def running(self) -> Sandbox:
        """The sandbox, whatever its state; it must have begun."""
        assert self._sandbox is not None
        return self._sandbox

    @property
    def over(self) -> bool:
        """Whether it ends or has ended."""
        return self._ending is not None

    def open_trace(self, call: Call) -> None:
        """Before the first `Create`: read the configuration that it names, and begin the trace as that says.

        What goes wrong is raised by `begin`, where it can be answered.
        """
        if self._config is not None or not isinstance(call.request, task.CreateTaskRequest):
            return
        launch = self._shim.launch
        reading = time.monotonic_ns()
        try:
            self._config = load(_config_path(call.request.options))
            read = time.monotonic_ns()
            self._trace = SandboxTrace.open(
                self._config, self.id, command=launch.group.kind, start=launch.started, parent=call.parent
            )
        except KataError as error:
            self._problem = error
            return
        with use(self._trace.root):
            _trace.record("startShim", launch.started, launch.forked)
            _trace.record("startDaemon", launch.forked, self._made)
            _trace.record("awaitCreate", self._made, reading)
            _trace.record("loadConfig", reading, read, files=self._config.describe_files())

    async def begin(self, spec: Spec, bundle: Path) -> None:
        """Boot the sandbox for its first container, and run what the container wants run on the host before it starts.

        Raises:
            KataError: with the reason; the sandbox has ended then.
        """
        if self._problem is not None:
            raise self._problem
        if self._sandbox is not None or self._trace is None:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        options = SandboxOptions(
            hostname=str(spec.get("hostname") or self.id)[:_HOSTNAME_LENGTH],
            share_pid=self._shim.launch.group.kind == grouping.SANDBOX,
            netns=network_namespace(spec),
        ).from_environment(self.id)
        sandbox = self._sandbox = Sandbox(self.id, self.config, self._trace, options)
        try:
            await sandbox.start()
        except BaseException as error:
            self._outcome, self._failure = "error", error
            raise
        self._outcome = "killed"
        self._spec, self._bundle = spec, bundle
        await self.run_hooks(BEFORE_START, "creating", strict=True)

    async def run_hooks(self, kinds: Sequence[str], status: str, *, strict: bool = False) -> None:
        """Run hooks of the sandbox's own container; `status` is the container's, in OCI's words.

        Raises:
            SandboxError: with `strict`, one failed.
        """
        if hooks := self._spec.get("hooks"):
            annotations = self._spec.get("annotations") or {}
            state = HookState(self.id, status, self.pid, str(self._bundle), annotations)
            await run_hooks(hooks, kinds, state, strict=strict)

    def watch_memory(self, report: Callable[[str], None]) -> None:
        """Call `report` with the id of each container that ran out of memory."""

        async def watch() -> None:
            sandbox = self.sandbox
            while True:
                report(await sandbox.oom_event())

        self._memory_watch = self.spawn(watch(), "out of memory")

    def export(self) -> None:
        """Let the trace go to its collector: from here on it costs the workload's start nothing."""
        if self._trace is not None:
            self._trace.export()

    async def end(self, outcome: str, failure: BaseException | None = None) -> None:
        """Stop the sandbox and all in it. Goes on when the caller is cancelled; safe to repeat."""
        if self._ending is None:
            if self._sandbox is not None and self._outcome == "killed":
                self._outcome, self._failure = outcome, failure
            self._ending = asyncio.create_task(self._end(), name="end of the sandbox", context=self._context.copy())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._memory_watch is not None:
            self._memory_watch.cancel()
        if self._sandbox is not None:
            with use(self.root), _trace.span("Stop"):
                await self._sandbox.stop()
                await self.run_hooks(AFTER_END, "stopped")

    def close_trace(self) -> None:
        """Nothing happens any more."""
        if self._trace is not None:
            self._trace.close(self._outcome, self._failure)

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Let `work` go on beside the calls, under the trace's root; its owner keeps the task."""

        async def quietly() -> None:
            try:
                with use(self.root):
                    await work
            except KataError as error:
                _log.debug("%s: %s", name, error)

        return asyncio.create_task(quietly(), name=name, context=self._context.copy())


def _config_path(options: Any) -> Path | None:
    """ConfigPath of the runtime's options in containerd's configuration, or of `ctr run --runtime-config-path`."""
    if options.type_url.rpartition("/")[2] != Options.DESCRIPTOR.full_name:
        return None
    try:
        path = Options.FromString(options.value).config_path
    except DecodeError as error:
        raise InvalidArgument(f"the runtime's options can't be read: {error}") from error
    return Path(path) if path else None
