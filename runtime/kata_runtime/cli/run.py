"""`kata-runtime run`: one container in one new sandbox, in the foreground or (-d) beside it."""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kata_runtime import loop
from kata_runtime.birth import own_start
from kata_runtime.cli import terminal
from kata_runtime.cli.options import absolute, published, volume
from kata_runtime.cli.output import kept_output
from kata_runtime.cli.workload import prepare
from kata_runtime.config import Config
from kata_runtime.config.annotations import read_annotations
from kata_runtime.engine.standin import Started, stand_in
from kata_runtime.errors import AgentError, HostError, KataError
from kata_runtime.mount import private_mount_namespace
from kata_runtime.oci.bundle import Bundle
from kata_runtime.oci.limits import NOTHING, asked_by
from kata_runtime.oci.names import names_of
from kata_runtime.sandbox.container import Container
from kata_runtime.sandbox.hooks import AFTER_END, AFTER_START, BEFORE_START, NO_HOOKS, Hooks
from kata_runtime.sandbox.network.publish import Published, listening
from kata_runtime.sandbox.placement import placement_of
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.session import Session, configured
from kata_runtime.sandbox.sizing import Sizes, vm_sizes
from kata_runtime.sandbox.streams import Stdio
from kata_telemetry import logs
from kata_telemetry.conventions import IMAGE_NAME
from kata_telemetry.span import Site, use

__all__ = ["add_arguments"]

_trace = Site(package="containerdshim", subsystem="cli")
_log = logging.getLogger("kata.run")

# Seconds that a workload has after the second Ctrl-C.
_PATIENCE = 3.0
# By these a person ends a run, also one whose process has no handler for them.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FORWARDED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.usage = "kata-runtime run [OPTIONS] [-- COMMAND [ARG...]]"
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--rootfs", metavar="DIR", type=Path, help="root filesystem; what the container writes stays in it"
    )
    source.add_argument("--bundle", metavar="DIR", type=Path, help="OCI bundle: config.json and its root filesystem")
    source.add_argument(
        "--image",
        metavar="OCI-LAYOUT-OR-TAR",
        help="container image: OCI layout or archive, or docker-archive; PATH[:TAG]",
    )
    parser.add_argument(
        "-d", "--detach", action="store_true", help="return when it runs, and print its name; logs shows its output"
    )
    parser.add_argument("--rm", action="store_true", help="leave nothing afterwards: only output of -d would be left")
    _add_process(parser)
    _add_sandbox(parser)
    parser.add_argument("argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="-- command and its arguments")
    parser.set_defaults(run=run)


def _add_process(parser: argparse.ArgumentParser) -> None:
    """What concerns the container's process."""
    parser.add_argument("-i", "--interactive", action="store_true", help="pass stdin to the container")
    parser.add_argument("-t", "--tty", action="store_true", help="give the container a terminal")
    parser.add_argument(
        "-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable; K alone: ours"
    )
    parser.add_argument(
        "-w", "--cwd", "--workdir", metavar="DIR", type=absolute, help="working directory in the container"
    )
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", default="", help="user in the container, by name or id")


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    """What concerns the VM, and what it has of this host."""
    parser.add_argument(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro]",
        type=volume,
        action="append",
        default=[],
        help="show a file or directory of the host in the container",
    )
    parser.add_argument(
        "-p",
        "--publish",
        metavar="[ADDRESS:]HOST:GUEST",
        type=published,
        action="append",
        default=[],
        help="let a TCP port of this host lead to one of the container",
    )
    parser.add_argument(
        "--netns", metavar="PATH", help="network namespace whose interfaces the container gets (/run/netns/NAME)"
    )
    parser.add_argument("--cpus", metavar="N", type=_cpus, help="CPUs of the VM")
    parser.add_argument(
        "--memory", metavar="SIZE", type=_mebibytes, help="memory of the VM: 512M, 2G (MiB without a unit)"
    )
    parser.add_argument("--name", metavar="NAME", default="", help="name of the sandbox (default: a random one)")
    parser.add_argument(
        "--trace", action="store_true", help="trace this run on both sides, whatever the configuration says"
    )


def _cpus(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if not 1 <= count <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs")
    return count


def _mebibytes(text: str) -> int:
    factors = {"": 1, "M": 1, "MB": 1, "MIB": 1, "G": 1024, "GB": 1024, "GIB": 1024}
    digits = text.rstrip("MmGgIiBb")
    factor = factors.get(text[len(digits) :].upper())
    if factor is None or not digits.isdecimal() or not 1 <= int(digits) * factor <= 16 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 2G")
    return int(digits) * factor


@dataclass(frozen=True)
class Request:
    """A run, as the command line asked for it."""

    options: argparse.Namespace
    config: Config
    sandbox_id: str
    argv: tuple[str, ...]
    started: int
    # To be called when the container runs, and where its output goes, if it is detached.
    running: Started
    output: int | None = None
    ports: tuple[Published, ...] = ()


def run(options: argparse.Namespace) -> int:
    """Handler of the command; the exit code is the container's, or that of its start if it is detached."""
    if not options.detach:
        return _run(options, lambda: None)
    if options.interactive or options.tty:
        raise KataError("-d: nobody is there for -i or -t", hint="kata-runtime exec -it SANDBOX -- COMMAND")
    options.name = options.name or secrets.token_hex(6)
    if status := stand_in(lambda running: _run(options, running)):
        return status
    print(options.name)
    return 0


def _run(options: argparse.Namespace, running: Started) -> int:
    started = own_start()
    begin = time.monotonic_ns()
    if os.geteuid() != 0:
        raise HostError("kata-runtime run needs root", hint="sudo kata-runtime run …")
    annotations = read_annotations(options.bundle) if options.bundle is not None else {}
    config = configured(Path(options.config) if options.config else None, annotations)
    if options.trace:
        config = replace(
            config,
            runtime=replace(config.runtime, enable_tracing=True, trace_sampler="always_on", trace_keep=""),
            agent=replace(config.agent, enable_tracing=True),
        )
    # At once, and not when an image has been unpacked.
    vm_sizes(config, Sizes(options.cpus, options.memory), NOTHING)
    if config.runtime.enable_debug:
        logging.getLogger().setLevel(logging.DEBUG)
    if options.tty and not os.isatty(0):
        raise HostError("-t needs a terminal on stdin", hint="leave out -t, or run it from a terminal")
    argv = tuple(options.argv[1:] if options.argv[:1] == ["--"] else options.argv)
    request = Request(options, config, options.name or secrets.token_hex(6), argv, started, running)
    # Before any thread or event loop: from here on our mounts end with us.
    private_mount_namespace()
    command = argv[0] if argv else ""
    session = Session.open(config, request.sandbox_id, command=command, start=started)
    if options.image:
        session.root.set(**{IMAGE_NAME: Path(options.image).name})
    session.tell(_trace, ("startRuntime", started, begin), ("loadConfig", begin, time.monotonic_ns()))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(use(session.root))
            stack.enter_context(logs.log_fields(sandbox=request.sandbox_id, container=request.sandbox_id))
            request = replace(request, ports=stack.enter_context(listening(options.publish)))
            if options.detach:
                output = stack.enter_context(kept_output(request.sandbox_id, keep=not options.rm))
                request = replace(request, output=output)
            status = loop.run(_Run(request, session).main())
        session.conclude(f"exit {status}")
        return status
    except KataError as error:
        # Of what comes before the sandbox; what ends a sandbox was said there.
        session.conclude("error", error)
        raise
    finally:
        session.close()


class _Run:
    """One run: the sandbox's life, and the signals meanwhile."""

    def __init__(self, request: Request, session: Session) -> None:
        self._request = request
        self._session = session
        self._container: Container | None = None
        self._interrupted: signal.Signals | None = None
        self._task: asyncio.Task[int] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def main(self) -> int:
        """The whole run; the exit code. A signal before the workload runs ends it with 128 + its number."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        # What the caller ignores stays ignored (nohup).
        forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        for number in forwarded:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            return await self._sandbox()
        except asyncio.CancelledError:
            if self._interrupted is None:
                raise
            return 128 + self._interrupted
        finally:
            for number in forwarded:
                loop.remove_signal_handler(number)

    async def _sandbox(self) -> int:
        request = self._request
        options = request.options
        sizes = Sizes(vcpus=options.cpus, memory=options.memory)
        sandbox = self._session.make(SandboxOptions(sizes=sizes, netns=options.netns, published=request.ports))
        for left in sandbox.options.directories.sweep():
            _log.info("removed what a killed runtime left", extra={"sandbox": left})
        hooks = NO_HOOKS
        try:
            with _trace.stage("create"):
                with _trace.stage("prepareWorkload"):
                    workload = await prepare(
                        options,
                        request.argv,
                        sandbox.options.image_dir,
                        request.sandbox_id,
                        disable_guest_seccomp=request.config.runtime.disable_guest_seccomp,
                    )
                hooks = self._of_bundle(sandbox, workload.bundle)
                given = workload.bundle.spec if workload.bundle else {}
                sandbox.options = replace(sandbox.options, placement=placement_of(given))
                await self._session.start()
                await hooks.run(BEFORE_START, "creating", sandbox.pid, strict=True)
                container = await sandbox.create_container(
                    request.sandbox_id, workload.spec, workload.rootfs, self._stdio()
                )
            with self._terminal(container):
                with _trace.stage("Start"):
                    await container.start()
                self._container = container
                self._session.trace.started()
                request.running()
                await hooks.run(AFTER_START, "running", sandbox.pid)
                sandbox.settle()
                with _trace.stage("Wait", lasts=True):
                    return await sandbox.wait_container(container)
        except KataError as error:
            self._session.conclude("error", error)
            raise
        except Exception as error:
            await self._session.trace.failing(error)
            raise
        finally:
            self._container = None
            await self._session.stop(lambda: hooks.run(AFTER_END, "stopped", 0))

    def _of_bundle(self, sandbox: Sandbox, bundle: Bundle | None) -> Hooks:
        """The sandbox has the names of the bundle that it is for; the bundle's hooks."""
        if bundle is None:
            return NO_HOOKS
        names = names_of(bundle.spec)
        asked = asked_by(bundle.spec, pod=False)
        sandbox.options = replace(sandbox.options, hostname=names.hostname, domainname=names.domainname, asked=asked)
        return Hooks.of(bundle.spec, sandbox.id, bundle.directory)

    def _stdio(self) -> Stdio:
        options, output = self._request.options, self._request.output
        if output is not None:
            return Stdio(None, output, output)
        return Stdio(0 if options.interactive else None, 1, None if options.tty else 2)

    @contextlib.contextmanager
    def _terminal(self, container: Container) -> Iterator[None]:
        """The user's terminal is the container's for the block: raw, and its size follows."""
        if not self._request.options.tty:
            yield
            return

        def resize() -> None:
            self._spawn(container.resize(*terminal.size(0)))

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, resize)
        try:
            with terminal.raw_mode(0):
                resize()
                yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._container is None:
            self._interrupted = number
            if self._task is not None and number in _ENDING:
                self._task.cancel()
            return
        again = self._interrupted is number and number in (signal.SIGINT, signal.SIGTERM)
        self._interrupted = number
        # The keys of a terminal mean everything that runs there; the second Ctrl-C means it.
        everything = again or number in (signal.SIGINT, signal.SIGQUIT)
        sent, ending = (signal.SIGKILL if again else number), number in _ENDING
        self._spawn(self._container.signal(sent, everything=everything, ending=ending))
        if again and self._task is not None:
            # A guest in which even SIGKILL does nothing is ended as a whole.
            asyncio.get_running_loop().call_later(_PATIENCE, self._task.cancel)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        async def quietly() -> None:
            try:
                await work
            except AgentError as error:
                _log.debug("the agent refused", extra={"error": str(error)})

        task = asyncio.create_task(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
