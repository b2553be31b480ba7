"""The one sandbox of a shim: its configuration, its trace, its start and its end."""

import asyncio
import contextvars
import functools
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from google.protobuf.message import DecodeError

from kata_protos.containerd import task_pb2 as task
from kata_protos.containerd.runtimeoptions_pb2 import Options
from kata_protos.containerd.sandbox_pb2 import CreateSandboxRequest
from kata_runtime.config import Config, load
from kata_runtime.config.annotations import read_annotations, with_annotations
from kata_runtime.errors import KataError
from kata_runtime.oci.names import names_of
from kata_runtime.oci.network import network_namespace
from kata_runtime.oci.spec import SHM, Spec
from kata_runtime.sandbox.hooks import AFTER_END, BEFORE_START, NO_HOOKS, Hooks
from kata_runtime.sandbox.placement import placement_of
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions, SandboxState
from kata_runtime.sandbox.tracing import SandboxTrace
from kata_runtime.shim.service import Shim
from kata_runtime.shim.ttrpc.errors import FailedPrecondition, InvalidArgument
from kata_runtime.shim.ttrpc.service import Call
from kata_telemetry.conventions import of_pod
from kata_telemetry.span import NO_SPAN, Level, Site, Span, use

__all__ = ["Pod", "options_of"]

_trace = Site(package="containerdshim", subsystem="task")
_log = logging.getLogger("kata.shim")

_RESOLV_CONF = "/etc/resolv.conf"
# Bytes; longer than any that is of use.
_RESOLV_CONF_LENGTH = 16 << 10


class Pod:
    """Begins with the first container's `Create` and ends with that container, or begins and ends as the sandbox
    service is told. It never begins again.
    """

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._made = time.monotonic_ns()
        self._config: Config | None = None
        self._trace: SandboxTrace | None = None
        self._problem: KataError | None = None
        self._sandbox: Sandbox | None = None
        self._hooks = NO_HOOKS
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

        What goes wrong is raised by `check`, where it can be answered.
        """
        if self._config is not None:
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
        try:
            self._config = with_annotations(load(_config_path(kind, options), apart=True), annotations)
            read = time.monotonic_ns()
            self._trace = SandboxTrace.open(
                self._config, self.id, command=launch.group.kind, start=launch.started, carrier=call.carrier
            )
        except KataError as error:
            self._problem = error
            return
        self._trace.root.set(**of_pod(annotations))
        with use(self._trace.root):
            stage = functools.partial(_trace.record, level=Level.ESSENTIAL)
            stage("startShim", launch.started, launch.forked)
            stage("startDaemon", launch.forked, self._made)
            stage("awaitCreate", self._made, reading)
            stage("loadConfig", reading, read, files=self._config.describe_files())

    @property
    def begun(self) -> bool:
        """Whether there is a sandbox, or has been one."""
        return self._sandbox is not None

    def check(self) -> None:
        """Raise what was wrong with the configuration or the trace."""
        if self._problem is not None:
            raise self._problem

    async def begin(self, options: SandboxOptions, hooks: Hooks = NO_HOOKS) -> None:
        """Boot the sandbox, then run the host's hooks of its own container.

        Raises:
            KataError: with the reason; the sandbox has ended then.
        """
        self.check()
        if self._sandbox is not None or self._trace is None:
            raise FailedPrecondition(f"sandbox {self.id} is not running")
        sandbox = self._sandbox = Sandbox(self.id, self.config, self._trace, options.from_environment(self.id))
        try:
            await sandbox.start()
        except BaseException as error:
            self._outcome, self._failure = "error", error
            raise
        self._outcome = "killed"
        self._hooks = hooks
        await hooks.run(BEFORE_START, "creating", self.pid, strict=True)

    def watch_memory(self, report: Callable[[str], None]) -> None:
        """Call `report` with the id of each container that ran out of memory."""

        async def watch() -> None:
            sandbox = self.sandbox
            while True:
                report(await sandbox.oom_event())

        self._memory_watch = self.spawn(watch(), "out of memory")

    def started(self) -> None:
        """A process runs: from here on the trace costs the workload's start nothing."""
        if self._trace is not None:
            self._trace.started()

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
            if self._failure is not None and self._trace is not None:
                await self._trace.failing(self._failure)
            with use(self.root), _trace.stage("Stop"):
                await self._sandbox.stop()
                await self._hooks.run(AFTER_END, "stopped", self.pid)

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


def options_of(spec: Spec, *, pod: bool) -> SandboxOptions:
    """What the sandbox's own container says of the sandbox; `pod` is whether others will come."""
    names = names_of(spec)
    return SandboxOptions(
        hostname=names.hostname,
        domainname=names.domainname,
        share_pid=pod,
        shm_size=_shm_size(spec),
        netns=network_namespace(spec),
        dns=_resolver(spec),
        forward_localhost=pod,
        placement=placement_of(spec, whole=True),
    )


def _resolver(spec: Spec) -> tuple[str, ...]:
    """What the container is given as resolv.conf, for the guest's own; as Kata does it (kata_agent.go, getDNS)."""
    for mount in spec.get("mounts") or ():
        source = Path(mount.get("source") or "")
        if mount["destination"] == _RESOLV_CONF and source.is_file():  # a fifo would be waited for
            try:
                with source.open("rb") as file:
                    return tuple(file.read(_RESOLV_CONF_LENGTH).decode(errors="replace").splitlines())
            except OSError:
                return ()
    return ()


def _shm_size(spec: Spec) -> int:
    """Bytes of the shared memory that whoever made the container has made for it on the host; 0 where there is none."""
    for mount in spec.get("mounts") or ():
        if mount["destination"] == SHM and "tmpfs" not in (mount.get("type") or ""):
            try:
                found = os.statvfs(mount.get("source") or "")
            except OSError:
                return 0
            return found.f_blocks * found.f_frsize
    return 0


def _config_path(kind: str, options: bytes) -> Path | None:
    """ConfigPath of the runtime's options in containerd's configuration, or of `ctr run --runtime-config-path`."""
    if kind.rpartition("/")[2] != Options.DESCRIPTOR.full_name:
        return None
    try:
        path = Options.FromString(options).config_path
    except DecodeError as error:
        raise InvalidArgument(f"the runtime's options can't be read: {error}") from error
    return Path(path) if path else None
