"""containerd's sandbox service: the sandbox is made by itself, and containers come to it as tasks.

containerd 2 speaks it where the runtime's configuration says `sandboxer = "shim"`. There is no pause container then,
and no container whose end would be the sandbox's: the sandbox lives until it is told to stop or its VM is gone.
"""

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from kata_protos.containerd import sandbox_pb2 as pb
from kata_protos.containerd.cgroups2_pb2 import Metrics
from kata_protos.containerd.cri_pb2 import NODE, POD, DNSConfig, PodSandboxConfig
from kata_runtime.oci.limits import of_limits
from kata_runtime.oci.names import names_of
from kata_runtime.sandbox.placement import Placement
from kata_runtime.sandbox.sandbox import SandboxOptions
from kata_runtime.shim.metrics import add_metrics
from kata_runtime.shim.pod import Pod
from kata_runtime.shim.service import SandboxService
from kata_runtime.shim.ttrpc.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

__all__ = ["KataSandboxes", "Tasks"]

_log = logging.getLogger("kata.shim")

# Kubernetes' own size of /dev/shm.
_SHM_SIZE = 64 << 20
# Go's names of machines, as in OCI's platforms.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CRI_CONFIG = "runtime.v1.PodSandboxConfig"


class State(StrEnum):
    """CRI's names, which containerd passes on; NONE and CREATED are not ready for it either."""

    NONE = "SANDBOX_UNKNOWN"
    CREATED = "SANDBOX_CREATED"
    READY = "SANDBOX_READY"
    STOPPED = "SANDBOX_NOTREADY"


class Tasks:
    """What the sandbox service needs of the task service."""

    def __init__(
        self,
        stats: Callable[[], Awaitable[list[Metrics]]],
        out_of_memory: Callable[[str], None],
        ended: Callable[[], Awaitable[None]],
        stop: Callable[[], None],
    ) -> None:
        self.stats = stats
        self.out_of_memory = out_of_memory
        self.ended = ended
        self.stop = stop


class KataSandboxes(SandboxService):
    """The one sandbox of a shim, made by `CreateSandbox` instead of by its first container."""

    def __init__(self, pod: Pod, tasks: Tasks) -> None:
        self._pod = pod
        self._tasks = tasks
        self._options = SandboxOptions()
        # Whether CRI made it, whose options say what all of its containers share.
        self.of_cri = False
        self._lock = asyncio.Lock()
        self._created_ns = 0
        self._exit_status = 0
        self._exited_ns = 0
        self._stopped = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def _state(self) -> State:
        """As containerd is told it: it follows from the pod's, of which there is one account."""
        if not self._created_ns:
            return State.NONE
        if self._stopped.is_set() or self._pod.over:
            return State.STOPPED
        return State.READY if self._pod.ready else State.CREATED

    @property
    def lives(self) -> bool:
        """Whether there is a sandbox that no container's end ends."""
        return self._state in (State.CREATED, State.READY)

    @property
    def ready(self) -> bool:
        """Whether a sandbox runs."""
        return self._state is State.READY

    def _check(self, sandbox_id: str) -> None:
        if self._state is State.NONE or sandbox_id != self._pod.id:
            raise NotFound(f"there is no sandbox {sandbox_id}")

    async def create_sandbox(self, request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
        """See SandboxService. Nothing runs yet."""
        if self._state is not State.NONE or self._pod.begun:
            raise AlreadyExists(f"there is a sandbox {self._pod.id} already")
        if request.sandbox_id != self._pod.id:
            raise InvalidArgument(f"this shim is for sandbox {self._pod.id}, not for {request.sandbox_id!r}")
        if request.rootfs:
            raise InvalidArgument("a sandbox has no root filesystem of its own: its guest's is in the configuration")
        self._options = _options(request)
        self.of_cri = _is_cri(request)
        self._created_ns = time.time_ns()
        return pb.CreateSandboxResponse()

    async def start_sandbox(self, request: pb.StartSandboxRequest) -> pb.StartSandboxResponse:
        """See SandboxService: boot it."""
        if self._state is State.NONE:
            raise FailedPrecondition(f"sandbox {request.sandbox_id} has not been created")
        self._check(request.sandbox_id)
        async with self._lock:
            if self._state is not State.CREATED:
                raise FailedPrecondition(f"sandbox {self._pod.id} has been started before")
            try:
                await self._pod.begin(self._options)
            except BaseException as error:
                self._ended(255)
                await self._pod.end("error", error)
                raise
            self._pod.watch_memory(self._tasks.out_of_memory)
            self._watch = self._pod.spawn(self._until_lost(), "end of the VM")
        self._pod.started()
        return pb.StartSandboxResponse(pid=self._pod.pid, created_at=_stamp(self._created_ns))

    async def _until_lost(self) -> None:
        await self._pod.running.vm_ended()
        if not self._pod.over:
            reason = RuntimeError("the VM has ended")
            _log.error("sandbox %s is lost: %s", self._pod.id, reason)
            await self._tasks.ended()
            self._ended(255)
            await self._pod.end("error", reason)

    def _ended(self, status: int) -> None:
        self._exit_status = status
        self._exited_ns = time.time_ns()
        self._stopped.set()

    async def platform(self, request: pb.PlatformRequest) -> pb.PlatformResponse:
        """See SandboxService. Known before there is a sandbox: images are chosen by it."""
        response = pb.PlatformResponse()
        response.platform.os = "linux"
        response.platform.architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
        return response

    async def stop_sandbox(self, request: pb.StopSandboxRequest) -> pb.StopSandboxResponse:
        """See SandboxService. What still runs in it is killed. Safe to repeat."""
        self._check(request.sandbox_id)
        await asyncio.shield(asyncio.ensure_future(self._stop()))
        return pb.StopSandboxResponse()

    async def _stop(self) -> None:
        async with self._lock:
            if self._stopped.is_set():
                return
            if self._watch is not None:
                self._watch.cancel()
            await self._pod.end("stopped")
            await self._tasks.ended()
            self._ended(0)

    async def wait_sandbox(self, request: pb.WaitSandboxRequest) -> pb.WaitSandboxResponse:
        """See SandboxService: 0 where it was told to stop, 255 where its VM was lost."""
        self._check(request.sandbox_id)
        await self._stopped.wait()
        return pb.WaitSandboxResponse(exit_status=self._exit_status, exited_at=_stamp(self._exited_ns))

    async def sandbox_status(self, request: pb.SandboxStatusRequest) -> pb.SandboxStatusResponse:
        """See SandboxService."""
        self._check(request.sandbox_id)
        response = pb.SandboxStatusResponse(
            sandbox_id=self._pod.id,
            pid=self._pod.pid,
            state=self._state,
            created_at=_stamp(self._created_ns),
            exited_at=_stamp(self._exited_ns),
        )
        if request.verbose:
            response.info["configuration"] = self._pod.config.describe_files()
            if self._pod.root.recording:
                response.info["trace"] = f"{self._pod.root.context.trace_id:032x}"
        return response

    async def ping_sandbox(self, request: pb.PingRequest) -> pb.PingResponse:
        """See SandboxService: an error where it does not run."""
        self._check(request.sandbox_id)
        if self._state is not State.READY:
            raise FailedPrecondition(f"sandbox {self._pod.id} is not running")
        return pb.PingResponse()

    async def shutdown_sandbox(self, request: pb.ShutdownSandboxRequest) -> pb.ShutdownSandboxResponse:
        """See SandboxService: stop it if it runs, then the shim. containerd calls it after a failed Create, too."""
        if self._state is not State.NONE:
            await self.stop_sandbox(pb.StopSandboxRequest(sandbox_id=request.sandbox_id))
        self._tasks.stop()
        return pb.ShutdownSandboxResponse()

    async def sandbox_metrics(self, request: pb.SandboxMetricsRequest) -> pb.SandboxMetricsResponse:
        """See SandboxService: the sum over its containers, as the guest counts."""
        self._check(request.sandbox_id)
        if self._state is not State.READY:
            raise FailedPrecondition(f"sandbox {self._pod.id} is not running")
        total = Metrics()
        for metrics in await self._tasks.stats():
            add_metrics(total, metrics)
        response = pb.SandboxMetricsResponse()
        response.metrics.id = self._pod.id
        response.metrics.timestamp.GetCurrentTime()
        response.metrics.data.type_url = total.DESCRIPTOR.full_name
        response.metrics.data.value = total.SerializeToString()
        return response


def _options(request: pb.CreateSandboxRequest) -> SandboxOptions:
    """What CRI says of the pod; other callers have no options that mean anything here."""
    config = PodSandboxConfig()
    if _is_cri(request):
        try:
            config.ParseFromString(request.options.value)
        except DecodeError as error:
            raise InvalidArgument(f"the pod's configuration can't be read: {error}") from error
    resources = config.linux.resources
    namespaces = config.linux.security_context.namespace_options
    # As containerd's CRI plugin makes them for a pod's own container.
    kinds = ("pid",) if config.HasField("linux") and namespaces.network == NODE else ("pid", "uts")
    names = names_of({"hostname": config.hostname, "linux": {"namespaces": [{"type": kind} for kind in kinds]}})
    return SandboxOptions(
        hostname=names.hostname,
        domainname=names.domainname,
        # Who is no kubelet says it by the containers' specifications alone.
        share_pid=namespaces.pid == POD,
        hold_pid=True,
        shm_size=_SHM_SIZE,
        netns=request.netns_path,
        dns=_resolver(config.dns_config),
        asked=of_limits(resources.cpu_quota, resources.cpu_period, resources.memory_limit_in_bytes),
        forward_localhost=True,
        placement=Placement(_cgroups_path(config.linux.cgroup_parent, request.sandbox_id), whole=True),
    )


def _is_cri(request: pb.CreateSandboxRequest) -> bool:
    return request.options.type_url.rpartition("/")[2] == _CRI_CONFIG


def _cgroups_path(parent: str, sandbox_id: str) -> str:
    """The sandbox's path below what CRI says, as containerd's CRI plugin makes it (getCgroupsPath)."""
    if not parent:
        return ""
    name = parent.rstrip("/").rpartition("/")[2]
    return f"{name}:cri-containerd:{sandbox_id}" if name.endswith(".slice") else f"{parent}/{sandbox_id}"


def _resolver(dns: DNSConfig) -> tuple[str, ...]:
    """The lines of a resolv.conf(5) that says the same."""
    lines = [f"nameserver {server}" for server in dns.servers]
    lines += [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return tuple(lines)


def _stamp(at_ns: int) -> Timestamp | None:
    if not at_ns:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(at_ns)
    return stamp
