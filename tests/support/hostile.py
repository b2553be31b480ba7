"""A real guest whose root is against us: a container in it that does whatever Python a test sends it."""

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.oci.bundle import Bundle
from kata_runtime.oci.spec import CAPABILITIES
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.rootfs import GUEST_SHARED, share_rootfs
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.state import SandboxDirectory
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.trace import SandboxTrace
from kata_runtime.sandbox.workload import Workload, of_bundle
from kata_telemetry.span import use

__all__ = ["SHARE", "Attacker", "HostileGuest", "bind_mount", "hostile_guest", "plain_rootfs"]

# Where an attacker's own mount of the virtio-fs device is, in its container.
SHARE = "/share"
# Linux's last capability so far (linux/capability.h), and more than that is ignored by nobody.
_ALL = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
""".split()  # noqa: SIM905 -- reads better

# What runs in the guest: a line of JSON is some code and what it knows, a line of JSON goes back.
_LOOP = '''
import ctypes, errno, json, os, stat, sys, time
libc = ctypes.CDLL("libc.so.6", use_errno=True)

def checked(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def mount(source, target, kind="", flags=0, data=""):
    checked(libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode()))

def exchange(one, other):
    checked(libc.renameat2(-100, one.encode(), -100, other.encode(), 2))

def write(path, text="from the guest"):
    with open(path, "a") as file:
        file.write(text)

def outcome(work, *arguments):
    """"done", or the name of the error."""
    try:
        work(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"

known = dict(globals())
for line in sys.stdin:
    order = json.loads(line)
    names = {**known, **order["names"]}
    try:
        exec(order["code"], names)
        answer = {"result": names.get("result")}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
'''


def bind_mount(source: Path, destination: str, *options: str) -> dict[str, Any]:
    """A mount of config.json."""
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}


def plain_rootfs(directory: Path) -> Path:
    """A root file system without any program, with the usual directories."""
    for name in ("dev", "proc", "sys", "tmp", "usr", "share", "etc"):
        (directory / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (directory / name).symlink_to(f"usr/{name}")
    return directory


@dataclass
class Attacker:
    """A container of the hostile guest that obeys."""

    container: Container
    rootfs: Path
    _to: asyncio.StreamWriter
    _from: asyncio.StreamReader

    async def does(self, code: str, **names: object) -> Any:
        """Run `code` in the guest, where `names` are known (and `mount`, `exchange`, `write`, `outcome`): `result`."""
        order = {"code": textwrap.dedent(code), "names": names}
        self._to.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(180):
            line = await self._from.readline()
        assert line, "the attacker has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]


@dataclass
class HostileGuest:
    """The sandbox, with helpers to make containers in it."""

    sandbox: Sandbox
    trace: SandboxTrace
    scratch: Path
    stack: AsyncExitStack
    directory: SandboxDirectory = field(init=False)

    def __post_init__(self) -> None:
        self.directory = SandboxDirectory(self.sandbox.options.directories, self.sandbox.id)

    def workload(
        self,
        name: str,
        rootfs: Path,
        *,
        mounts: Iterable[Mapping[str, Any]] = (),
        readonly: bool = False,
        privileged: bool = False,
        args: tuple[str, ...] = ("/bin/true",),
    ) -> Workload:
        """As the runtime makes it of a bundle; `privileged` is with every capability."""
        python = Path(sys.base_prefix)
        # The host's Python and libraries; a container has no network to fetch its own from.
        places = {Path("/usr"), python if not python.is_relative_to("/usr") else Path("/usr")}
        held = [f"CAP_{capability}" for capability in _ALL] if privileged else list(CAPABILITIES)
        listed = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            *(bind_mount(place, str(place), "ro") for place in sorted(places)),
            *mounts,
        ]
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "args": list(args),
                "cwd": "/",
                "env": ["PATH=/usr/bin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), held),
            },
            "root": {"path": str(rootfs), "readonly": readonly},
            "mounts": listed,
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }
        return of_bundle(Bundle(self.scratch, rootfs, spec), name, disable_guest_seccomp=True)

    async def create(self, name: str, workload: Workload, stdio: Stdio | None = None) -> Container:
        """A container of the sandbox, in the way that the runtime makes it."""
        with use(self.trace.root):
            return await self.sandbox.create_container(name, workload.spec, workload.rootfs, stdio or Stdio())

    async def remove(self, container: Container) -> None:
        """End it."""
        with use(self.trace.root):
            await self.sandbox.remove_container(container)

    @contextmanager
    def shared(self, name: str, workload: Workload) -> Any:
        """The host's part of a container alone."""
        with share_rootfs(self.directory, name, workload.rootfs):
            yield

    async def attacker(self, name: str, *, privileged: bool, mounts: Iterable[Mapping[str, Any]] = ()) -> Attacker:
        """A container that obeys; a privileged one has all of the share at SHARE, as the guest's own root."""
        rootfs = plain_rootfs(self.scratch / name)
        python = os.path.realpath(sys.executable)
        args = (python, "-I", "-S", "-u", "-c", _LOOP)
        workload = self.workload(name, rootfs, mounts=mounts, privileged=privileged, args=args)
        if privileged:
            # The agent's mount: of a second one of the device, Linux 6.1 makes whatever file system came last below it.
            place = {"destination": SHARE, "type": "bind", "source": GUEST_SHARED, "options": ["rbind", "rw"]}
            workload.spec["mounts"].append(place)
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        error = os.open(self.scratch / f"{name}.stderr", os.O_CREAT | os.O_WRONLY, 0o600)
        for end in (theirs_in, theirs_out):
            os.set_blocking(end, False)
        self.stack.callback(_close, theirs_in, theirs_out, error)
        reader, writer = await _streams(ours_out, ours_in)
        self.stack.callback(writer.close)
        container = await self.create(name, workload, Stdio(theirs_in, theirs_out, error))
        with use(self.trace.root):
            await container.start()
        return Attacker(container, rootfs, writer, reader)


async def _streams(read: int, write: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb"))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(write, "wb"))
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@asynccontextmanager
async def hostile_guest(scratch: Path, logs: Path) -> AsyncIterator[HostileGuest]:
    """A sandbox of this process, whose mount namespace is one of its own; `scratch` is on the host."""
    runtime = RuntimeConfig(trace_dir=str(scratch / "traces"))
    config = Config(QemuConfig(), AgentConfig(), runtime)
    sandbox_id = f"hostile-{os.getpid()}"
    trace = SandboxTrace.open(config, sandbox_id, command="hostile")
    options = SandboxOptions(logs_dir=logs).from_environment(sandbox_id)
    sandbox = Sandbox(sandbox_id, config, trace, options)
    try:
        async with AsyncExitStack() as stack:
            with use(trace.root):
                stack.push_async_callback(sandbox.stop)
                await sandbox.start()
            yield HostileGuest(sandbox, trace, scratch, stack)
    finally:
        trace.close("exit 0")
