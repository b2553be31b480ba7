"""The one sandbox of a shim: its configuration, its trace, its start and its end."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from google.protobuf.message import DecodeError

from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.runtimeoptions_pb2 import Options
from kata_protos.containerd.sandbox_pb2 import CreateSandboxRequest
from kata_runtime.config import Config
from kata_runtime.config.annotations import read_annotations
from kata_runtime.errors import KataError
from kata_runtime.oci.sandbox import SandboxSpec
from kata_runtime.sandbox.hooks import AFTER_END, BEFORE_START, NO_HOOKS, Hooks
from kata_runtime.sandbox.placement import Placement
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions, SandboxState
from kata_runtime.sandbox.session import Session, configured
from kata_runtime.shim.service import Shim
from kata_runtime.shim.ttrpc.errors import FailedPrecondition, InvalidArgument
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.conventions import of_pod
from kata_telemetry.span import NO_SPAN, Site, Span, use

__all__ = ["Pod", "options_of"]

_trace = Site(package="containerdshim", subsystem="task")
_log = logging.getLogger("kata.shim")
# Seconds from one word of memory that ran out to the next.
_OOM_PAUSE = 0.05


class Pod:
    """Begins with the first container's `Create` and ends with that container, or begins and ends as the sandbox
    service is told. It never begins again.
    """

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._made = time.monotonic_ns()
        self._session: Session | None = None
        self._hooks = NO_HOOKS
        # Without the call that happens to begin something: what goes on later is nobody's in particular.
        self._context = contextvars.copy_context()
        self._memory_watch: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self._shim.launch.group.sandbox_id

    @property
    def pid(self) -> int:
        """The VM's process id, which stands for all processes in it; 0 where there is none."""
        return self.running.pid if self.begun else 0

    @property
    def session(self) -> Session:
        """What the first `Create` has opened (`open`)."""
        if self._session is None:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        return self._session

    @property
    def config(self) -> Config:
        """The configuration; a `Create` must have come."""
        return self.session.config

    @property
    def root(self) -> Span:
        """The root of the sandbox's trace."""
        return self._session.root if self._session else NO_SPAN

    @property
    def begun(self) -> bool:
        """Whether there is a sandbox, or has been one."""
        return self._session is not None and self._session.sandbox is not None

    @property
    def running(self) -> Sandbox:
        """The sandbox, whatever its state; it must have begun."""
        sandbox = self.session.sandbox
        assert sandbox is not None
        return sandbox

    @property
    def ready(self) -> bool:
        """Whether containers can be made in it."""
        return self.begun and not self.over and self.running.state is SandboxState.READY

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox, which is ready.

        Raises:
            FailedPrecondition: there is none yet, or no more.
        """
        if not self.ready:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        return self.running

    @property
    def over(self) -> bool:
        """Whether it ends or has ended."""
        return self._ending is not None

    def open(self, call: Call) -> None:
        """Before the first `Create`: read the configuration that it names, and begin the trace as that says.

        Raises:
            KataError: one of them can't be.
        """
        if self._session is not None:
            return
        launch = self._shim.launch
        if isinstance(call.request, task.CreateTaskRequest):
            kind, options = call.request.options.type_url, call.request.options.value
            annotations = read_annotations(Path(call.request.bundle))
        elif isinstance(call.request, CreateSandboxRequest):
            # Its own options are the pod's; those of the runtime came with `start`.
            kind, options = launch.options[0] if launch.options else ("", b"")
            annotations = dict(call.request.annotations)
        else:
            return
        reading = time.monotonic_ns()
        config = configured(_config_path(kind, options), annotations, apart=True)
        read = time.monotonic_ns()
        self._session = Session.open(
            config, self.id, command=launch.group.kind, start=launch.started, carrier=call.carrier
        )
        self._session.root.set(**of_pod(annotations))
        self._session.tell(
            _trace,
            ("startShim", launch.started, launch.forked),
            ("startDaemon", launch.forked, self._made),
            ("awaitCreate", self._made, reading),
            ("loadConfig", reading, read),
        )

    async def begin(self, options: SandboxOptions, hooks: Hooks = NO_HOOKS) -> None:
        """Boot the sandbox, then run the host's hooks of its own container.

        Raises:
            KataError: with the reason; the sandbox has ended then.
        """
        if self.begun or self.over:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        self.session.make(options)
        await self.session.start()
        self._hooks = hooks
        await hooks.run(BEFORE_START, "creating", self.pid, strict=True)

    def watch_memory(self, report: Callable[[str], None]) -> None:
        """Call `report` with the id of each container that ran out of memory."""

        async def watch() -> None:
            sandbox = self.sandbox
            while True:
                report(await sandbox.oom_event())
                # A guest may tell of as many as it likes.
                await asyncio.sleep(_OOM_PAUSE)

        self._memory_watch = self.spawn(watch(), "out of memory")

    def started(self) -> None:
        """A process runs: from here on the trace costs the workload's start nothing."""
        self.session.trace.started()
        if self.begun:
            self.running.settle()

    async def end(self, outcome: str, failure: BaseException | None = None) -> None:
        """Stop the sandbox and all in it. Goes on when the caller is cancelled; safe to repeat."""
        if self._ending is None:
            if self._session is not None and self.begun:
                self._session.conclude(outcome, failure)
            self._ending = asyncio.create_task(self._end(), name="end of the sandbox", context=self._context.copy())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._memory_watch is not None:
            self._memory_watch.cancel()
        if self._session is not None:
            await self._session.stop(lambda: self._hooks.run(AFTER_END, "stopped", self.pid))

    def close_trace(self) -> None:
        """Nothing happens any more."""
        if self._session is not None:
            self._session.close()

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """Let `work` go on beside the calls, under the trace's root; its owner keeps the task."""

        async def quietly() -> None:
            try:
                with use(self.root):
                    await work
            except KataError as error:
                _log.debug("%s: %s", name, error)

        return asyncio.create_task(quietly(), name=name, context=self._context.copy())


def options_of(spec: SandboxSpec, *, pod: bool) -> SandboxOptions:
    """What the sandbox's own container says of the sandbox; `pod` is whether others will come."""
    return SandboxOptions(
        hostname=spec.hostname,
        domainname=spec.domainname,
        share_pid=pod,
        shm_size=spec.shm_size,
        asked=spec.pod_asked if pod else spec.asked,
        netns=spec.netns,
        dns=spec.dns,
        forward_localhost=pod,
        placement=Placement(spec.cgroups_path, spec.oom_score_adj, whole=True),
    )


def _config_path(kind: str, options: bytes) -> Path | None:
    """ConfigPath of the runtime's options in containerd's configuration, or of `ctr run --runtime-config-path`."""
    if kind.rpartition("/")[2] != Options.DESCRIPTOR.full_name:
        return None
    try:
        path = Options.FromString(options).config_path
    except DecodeError as error:
        raise InvalidArgument(f"the runtime's options can't be read: {error}") from error
    return Path(path) if path else None
