"""Makes a template: boots a guest, rehearses what a start does by the same calls, has it all forgotten, and saves it.

As a program (`python -m kata_runtime.sandbox.template.maker`, the request on stdin) it is the process that a start
leaves behind where it has found no template.
"""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from kata_common.documents import parse_json
from kata_runtime.config.load import config_from_json
from kata_runtime.config.model import Config
from kata_runtime.errors import KataError, TemplateError
from kata_runtime.hypervisor.boot import wait_ready
from kata_runtime.hypervisor.factory import hypervisor_of
from kata_runtime.mount import private_mount_namespace
from kata_runtime.oci import spec as oci
from kata_runtime.oci.user import find_user
from kata_runtime.sandbox.cgroup import hierarchies
from kata_runtime.sandbox.network.namespace import Namespace
from kata_runtime.sandbox.rootfs import Rootfs, guest_rootfs
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.state import Directories, SandboxDirectory
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.template.background import not_again
from kata_runtime.sandbox.template.clone import clone_vm
from kata_runtime.sandbox.template.key import Key, key_of
from kata_runtime.sandbox.template.meta import Meta
from kata_runtime.sandbox.template.spare import Spare
from kata_runtime.sandbox.template.store import ContendedError, TemplateStore
from kata_runtime.sandbox.trace import SandboxTrace
from kata_runtime.sandbox.vm import Sizes, Vm, VmRequest, find_artifacts, machine_spec, serve_vm, surroundings
from kata_telemetry.span import Site, use

__all__ = ["find_template", "main", "make_template", "ready_clone"]

_trace = Site(package="virtcontainers", subsystem="factory")
_log = logging.getLogger("kata.template")

# Seconds for all of it: an emulated guest that may only run when nobody else does needs a multiple of its boot.
_TIMEOUT = 180
# How often a container is created, run and removed. The first time modules are imported and files read, the second time
# finds all of it.
_REHEARSALS = 2
# Both are rehearsed with every start, and what they load stays loaded.
_MODULES = ("virtio_net",)


def find_template(config: Config, image_dir: Path) -> Meta | None:
    """What is known of the template for this configuration; None where there is none that is whole."""
    hypervisor = hypervisor_of(config)
    directory = SandboxDirectory(Directories(), "template")
    request = VmRequest(config, Sizes(), directory, find_artifacts(config, image_dir), Path())
    try:
        with hypervisor.prepared(directory.sandbox_id):
            key = key_of(request, hypervisor)
        found = TemplateStore.at(config.factory.template_path).find(key.digest)
    except TemplateError:
        return None
    if found is None:
        return None
    with found:
        return found.meta


async def ready_clone(config: Config, image_dir: Path, name: str) -> Spare:
    """A clone of this configuration's template, which is made where there is none, rehearsed once.

    Raises:
        KataError: there is none to be had.
    """
    quiet = replace(
        config,
        runtime=replace(config.runtime, enable_tracing=False, flight_recorder=False),
        agent=replace(config.agent, enable_tracing=False),
    )
    known = await asyncio.to_thread(find_template, config, image_dir) or await make_template(config, image_dir)
    trace = SandboxTrace.open(quiet, name, command="pool", start=time.monotonic_ns())
    options = SandboxOptions(image_dir=image_dir)
    async with AsyncExitStack() as stack:
        # Not the host's: it has nothing to do there.
        namespace = stack.enter_context(Namespace.made())

        @asynccontextmanager
        async def obtain(request: VmRequest) -> AsyncIterator[Vm]:
            hypervisor = hypervisor_of(request.config)
            wanted = replace(request, namespace=f"/proc/{os.getpid()}/fd/{namespace.fd}")
            async with AsyncExitStack() as opened:
                terms = opened.enter_context(hypervisor.prepared(name))
                template = TemplateStore.at(config.factory.template_path).find(known.key)
                if template is None:
                    raise TemplateError(f"template {known.key[:12]} has gone")
                with template:
                    cloned = await opened.enter_async_context(clone_vm(wanted, hypervisor, terms, template))
                yield cloned

        sandbox = Sandbox(name, quiet, trace, replace(options, obtain_vm=obtain))
        stack.push_async_callback(sandbox.stop)
        await sandbox.start()
        await _rehearse(sandbox, "rehearsal", image_dir)
        vm = await sandbox.retire()
        return Spare(known, vm, SandboxDirectory(options.directories, name).run, stack.pop_all())


async def make_template(config: Config, image_dir: Path, *, anew: bool = False) -> Meta:
    """Make the template for sandboxes of this configuration, and keep it. Needs a mount namespace of its own.

    Its own start is a trace where the configuration says so. One that somebody has made meanwhile is as good, unless
    it is wanted `anew`.

    Raises:
        TemplateError: it can't be made here, or somebody else makes one.
        KataError: the guest does not boot, or not do what is rehearsed.
    """
    store = TemplateStore.at(config.factory.template_path)
    with store.locked() as directory:
        if not anew and (known := await asyncio.to_thread(find_template, config, image_dir)):
            return known
        if lack := store.room(directory, config.hypervisor.default_memory):
            raise TemplateError(f"there is no room for a template: {lack}")
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await _Making(config, image_dir, store, directory).make()
        except TimeoutError:
            raise TemplateError(f"the template was not done within {_TIMEOUT} s") from None


class _Making:
    """One template in the making."""

    def __init__(self, config: Config, image_dir: Path, store: TemplateStore, directory: int) -> None:
        self._wanted = config
        self._image_dir = image_dir
        self._store = store
        self._directory = directory
        self._memory = -1
        self._key: Key | None = None

    async def make(self) -> Meta:
        with tempfile.TemporaryDirectory(prefix="kata-template-") as scratch:
            return await self._make(Path(scratch))

    async def _make(self, scratch: Path) -> Meta:
        name = f"template-{os.getpid()}"
        wanted = self._wanted
        keep = wanted.runtime.enable_tracing
        config = replace(
            wanted,
            # On both sides: what the agent needs for its spans is rehearsed as well.
            runtime=replace(
                wanted.runtime,
                enable_tracing=True,
                trace_sampler="always_on",
                trace_dir=wanted.runtime.trace_dir if keep else str(scratch),
                otlp_endpoint=wanted.runtime.otlp_endpoint if keep else "",
            ),
            agent=replace(wanted.agent, enable_tracing=True, trace_transport="runtime"),
            factory=replace(wanted.factory, enable_template=False),
        )
        trace = SandboxTrace.open(config, name, command="template", start=time.monotonic_ns())
        options = replace(SandboxOptions(image_dir=self._image_dir).from_environment(name), image_dir=self._image_dir)
        sandbox = Sandbox(name, config, trace, replace(options, obtain_vm=self._boot))
        outcome, failure = "error", None
        state = self._store.new_file(self._directory)
        try:
            try:
                with use(trace.root):
                    meta = await self._run(sandbox, state, trace.root.context.to_traceparent() if keep else "")
            finally:
                await sandbox.stop()
            # Nobody has its memory any more who could still change it.
            memory, kept = self._memory, state
            self._memory = state = -1
            meta = self._store.publish(self._directory, meta, memory, kept)
            outcome = "saved"
        except KataError as error:
            failure = error
            raise
        finally:
            for fd in (self._memory, state):
                if fd >= 0:
                    os.close(fd)
            trace.close(outcome, failure)
        return meta

    async def _run(self, sandbox: Sandbox, state: int, trace: str) -> Meta:
        """Rehearse, save to `state`; what is known of it so far."""
        await sandbox.start()
        with _trace.stage("rehearse"):
            for number in range(_REHEARSALS):
                await _rehearse(sandbox, f"rehearsal-{number}", self._image_dir)
        vm = await sandbox.retire()
        await vm.machine.save(state)
        vm.machine.kill()
        await vm.machine.wait()
        assert self._key is not None
        hypervisor = self._wanted.hypervisor
        return Meta(
            key=self._key.digest,
            made=time.time(),
            memory=hypervisor.default_memory,
            vcpus=hypervisor.vcpus(os.cpu_count() or 1),
            inputs=self._key.files,
            settings=self._key.settings,
            trace=trace,
        )

    @asynccontextmanager
    async def _boot(self, request: VmRequest) -> AsyncIterator[Vm]:
        """A `StartVm`: the guest boots without the devices that its clones will have of their own, then gets them."""
        hypervisor = hypervisor_of(request.config)
        spec = machine_spec(request)
        self._memory = self._store.new_file(self._directory, spec.memory << 20)
        spec = replace(spec, hotplug=True, memory_fd=self._memory)
        async with AsyncExitStack() as stack:
            terms = stack.enter_context(hypervisor.prepared(request.directory.sandbox_id))
            self._key = key_of(request, hypervisor)
            if terms.privileges is not None:
                os.fchown(self._memory, terms.privileges.uid, terms.privileges.gid)
            served = await stack.enter_async_context(serve_vm(request, terms))
            machine = await served.stack.enter_async_context(hypervisor.launch(spec, surroundings(request)))
            await wait_ready(machine, request.config.agent.dial_timeout)
            for device in served.devices:
                await machine.plug(device)
            yield served.vm(machine, spec)


async def _rehearse(sandbox: Sandbox, name: str, image_dir: Path) -> None:
    """What a start does, and what is likely to follow."""
    rootfs = Rootfs(find_artifacts(sandbox.config, image_dir).default_rootfs, ephemeral=True)
    wanted = oci.ContainerConfig(
        args=("sh", "-c", "read line; echo $line"),
        rootfs=guest_rootfs(name),
        env=oci.merge_env((), ()),
        cwd="/",
        user=find_user(rootfs.path, ""),
        terminal=False,
        hostname=name,
    )
    with _streams() as (reading, writing, null):
        container = await sandbox.create_container(name, oci.build(wanted), rootfs, Stdio(reading, null, null))
        await container.start()
        process = container.process("exec")
        await process.exec({**_process(oci.build(wanted)), "args": ["true"]}, Stdio(None, null, null))
        await process.wait()
        await process.close()
        await container.stats()
        os.write(writing, b"rehearsed\n")
        if status := await container.wait():
            raise TemplateError(f"the rehearsed container ended with {status}")
        await sandbox.remove_container(container)


def _process(spec: dict[str, object]) -> dict[str, object]:
    process = spec["process"]
    assert isinstance(process, dict)
    return process


@contextmanager
def _streams() -> Iterator[tuple[int, int, int]]:
    """A pipe's ends, and a place for output that nobody wants."""
    fds = [*os.pipe(), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)]
    try:
        yield fds[0], fds[1], fds[2]
    finally:
        for fd in fds:
            os.close(fd)


def main() -> int:
    """The process that a start leaves behind; its exit status."""
    # Whatever happens to it: its children end with it, and its files have no names yet.
    signal.alarm(_TIMEOUT + 30)
    os.nice(19)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # It is no pod's, so it is not to count as one's.
    for top in hierarchies():
        with suppress(OSError):
            (top / "cgroup.procs").write_text("0")
    request = parse_json(sys.stdin.read())
    config = config_from_json(request["config"])
    with suppress(OSError):
        private_mount_namespace()
    try:
        asyncio.run(make_template(config, Path(request["image_dir"])))
    except ContendedError:
        return 1
    except KataError as error:
        _log.info("no template was made: %s", error)
        not_again(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
