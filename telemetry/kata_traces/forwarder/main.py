"""`kata-trace-forwarder`: options, start and end."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kata_common import descriptors
from kata_common.contract import AGENT_SERVICE, Port
from kata_common.places import PORTS, RUN_DIR, VSOCK_SOCKET
from kata_common.text import told
from kata_telemetry import logs
from kata_traces.sdk import environment
from kata_traces.send.connect import connect
from kata_traces.send.settings import Given, SettingsError, Target, targets
from kata_traces.store.announce import Announcement
from kata_traces.store.errors import StoreError
from kata_traces.store.store import DEFAULT_TRACE_DIR, Store, stores

if TYPE_CHECKING:
    from kata_traces.forwarder.courier import Courier

__all__ = ["main", "parser"]

_log = logging.getLogger("kata.forwarder")

ENDPOINT: Final = "http://localhost:4317"
# Where our runtime's vsock backend looks for what listens on ports of the host.
SOCKET_PATH: Final = f"{RUN_DIR}/{{ID}}/{PORTS}/{VSOCK_SOCKET}"
VHOST_VSOCK: Final = Path("/dev/vhost-vsock")
# VMADDR_CID_ANY of vsock(7).
CID_ANY: Final = 0xFFFF_FFFF
# Seconds to send what is left when asked to end.
GRACE: Final = 5.0
EX_USAGE: Final = 64


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kata-trace-forwarder",
        description="Takes the spans of agents in guests and brings them to an OpenTelemetry collector.",
        epilog='Needed only where the configuration says trace_transport = "forwarder"; docs/tracing.md tells more.',
    )
    add = made.add_argument
    add("-l", "--log-level", choices=logs.LEVELS, default="info", help="default: info")
    add("--log-format", choices=logs.FORMATS, default="logfmt", help="default: logfmt")
    add("--otlp-endpoint", default="", metavar="URL", help=f"default: OTEL_EXPORTER_OTLP_ENDPOINT, else {ENDPOINT}")
    add("--otlp-protocol", choices=["grpc", "http/protobuf"], default="", help="default: by the endpoint's port")
    add(
        "--trace-name",
        default=AGENT_SERVICE,
        metavar="NAME",
        help=f"service that the spans belong to (default: {AGENT_SERVICE})",
    )
    add("--vsock-cid", type=_cid, metavar="CID", help="context id to listen on (default: any)")
    add(
        "--vsock-port",
        type=_port,
        metavar="PORT",
        help=f"port to listen on, also of hybrid vsock (default: {Port.FORWARDER})",
    )
    add(
        "--socket-path",
        action="append",
        metavar="PATH",
        help="hybrid vsock: listen at PATH_PORT; {ID} in it stands for each sandbox's id; may be repeated; default: "
        f"that of our runtime, {SOCKET_PATH}",
    )
    add("--dump-only", action="store_true", help="print spans as lines of OTLP/JSON, and forward none")
    add(
        "--trace-dir",
        type=Path,
        default=DEFAULT_TRACE_DIR,
        metavar="DIR",
        help=f"where traces are kept (default: {DEFAULT_TRACE_DIR})",
    )
    add("--run-dir", type=Path, default=Path(RUN_DIR), metavar="DIR", help=f"where sandboxes are (default: {RUN_DIR})")
    return made


def _cid(text: str) -> int:
    if text == "any":
        return CID_ANY
    if not text.isdecimal() or int(text) > CID_ANY:
        raise argparse.ArgumentTypeError(f"{text!r} is no context id: a number, or any")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < CID_ANY:
        raise argparse.ArgumentTypeError(f"{text!r} is no vsock port")
    return int(text)


@dataclass(frozen=True)
class Plan:
    """What the options come to."""

    targets: list[Target]
    templates: tuple[str, ...]
    vsock: bool
    cid: int
    port: int
    service: str
    dump: bool
    trace_dir: Path
    run_dir: Path


def plan(options: argparse.Namespace, variables: dict[str, str], vhost: Path = VHOST_VSOCK) -> Plan:
    """Raises SettingsError."""
    given = Given(options.otlp_endpoint, options.otlp_protocol, named="--otlp-{}")
    # Who names an endpoint means it, whatever the environment has.
    named = {"OTEL_TRACES_EXPORTER": "otlp"} if options.otlp_endpoint else {}
    to = targets({**variables, **named}, given)
    if not to and not variables.get("OTEL_TRACES_EXPORTER", "").strip():
        to = targets(variables, Given(ENDPOINT, options.otlp_protocol, named="--otlp-{}"))
    # Without vhost-vsock no guest can come that way, so nobody listens unless told to.
    asked = options.vsock_cid is not None or options.vsock_port is not None
    return Plan(
        targets=to,
        templates=tuple(options.socket_path or ([str(options.run_dir / "{ID}" / PORTS / VSOCK_SOCKET)])),
        vsock=vhost.exists() or (asked and options.socket_path is None),
        cid=CID_ANY if options.vsock_cid is None else options.vsock_cid,
        port=Port.FORWARDER if options.vsock_port is None else options.vsock_port,
        service=options.trace_name,
        dump=options.dump_only,
        trace_dir=options.trace_dir,
        run_dir=options.run_dir,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit status: 0 after SIGTERM or SIGINT, 64 for options that can't work, 1 where nothing can be
    listened at.
    """
    descriptors.fill()
    options = parser().parse_args(arguments)
    # Guests may come and go as often as they like.
    logs.configure(options.log_format, options.log_level, sys.stderr, source="forwarder").addFilter(logs.Flood())
    # grpc's core would log every failed attempt.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from kata_traces.forwarder.sources import ListenError, SourceError

    try:
        return asyncio.run(_serve(plan(options, dict(os.environ))))
    except (SettingsError, SourceError) as error:
        print(told(f"kata-trace-forwarder: {error}"), file=sys.stderr)
        return EX_USAGE
    except (ListenError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(told(f"kata-trace-forwarder: {why}"), file=sys.stderr)
        return 1


async def _serve(what: Plan) -> int:
    from kata_telemetry import otlp
    from kata_traces.forwarder.inbox import Dump, Inbox
    from kata_traces.forwarder.service import Forwarder

    otlp.preload()
    environment.tidy()
    couriers = [] if what.dump else _couriers(what)

    def stored(store: Store) -> None:
        for courier in couriers:
            courier.tell(store)

    if not what.dump:
        forwarder = Forwarder(partial(Inbox, service=what.service, trace_dir=what.trace_dir, stored=stored))
    else:
        forwarder = Forwarder(partial(Dump, service=what.service, output=sys.stdout))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await _listen(what, forwarder.accepted, forwarder.sweep, stop)
    finally:
        await forwarder.close()
        left = await asyncio.gather(*(asyncio.to_thread(courier.stop, GRACE) for courier in couriers))
        if kept := {store for stores in left for store in stores}:
            _log.warning("spans of %d sandboxes are kept and not forwarded yet", len(kept))
    return 0


def _couriers(what: Plan) -> "list[Courier]":
    """Those that send, one to each target, who begin with what an earlier forwarder left."""
    from kata_traces.forwarder.courier import Courier, Holder, left

    holder = Holder()
    couriers = [(target, Courier(target, connect(target), holder)) for target in what.targets]
    kept = set(stores(what.trace_dir))
    if what.run_dir.is_dir():
        announced = [Announcement.read(path) for path in what.run_dir.iterdir()]
        kept |= {Store(Path(said.store)) for said in announced if said}
    for store in kept:
        for target, courier in couriers:
            if left(store, target):
                courier.tell(store)
    return [courier for _, courier in couriers]


async def _listen(what: Plan, accept: "Callable[..., None]", gone: Callable[[], None], stop: asyncio.Event) -> None:
    """Until `stop`, or until a source fails: its error is raised then."""
    from kata_traces.forwarder.sources import HybridSource, Template, VsockSource

    templates = [Template.parse(text) for text in what.templates]
    runs: list[Callable[[Callable[[], None]], Coroutine[None, None, None]]] = []
    runs += [HybridSource(template, what.port, accept, gone).run for template in templates]
    if what.vsock:
        runs.append(VsockSource(what.cid, what.port, what.run_dir, accept).run)
    waiting = len(runs)

    def ready() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            names = ", ".join(target.target for target in what.targets) or "nobody"
            to = "standard output" if what.dump else names
            _log.info("ready", extra={"sources": len(runs), "port": what.port, "to": to})

    tasks: list[asyncio.Task[None]] = [asyncio.create_task(run(ready)) for run in runs]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((*tasks, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        stopping.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
