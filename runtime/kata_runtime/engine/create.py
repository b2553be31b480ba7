"""`kata-runtime create`: a container up to its first process, and a process that stands for it."""

import argparse
import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kata_runtime.engine.standin import Console, Started, stand_in
from kata_runtime.engine.store import Record, Store, began
from kata_runtime.errors import HostError, KataError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `create`."""
    parser.add_argument("-b", "--bundle", metavar="DIR", default=".", help="OCI bundle (default: where we are)")
    parser.add_argument("--console-socket", metavar="PATH", default="", help="send the terminal to who listens there")
    parser.add_argument("--pid-file", metavar="FILE", default="", help="write the id of the process that stands for it")
    parser.add_argument(
        "--preserve-fds", metavar="N", type=int, default=0, help="only 0: a guest has no descriptors of ours"
    )
    parser.add_argument("--no-pivot", action="store_true", help="accepted: a guest's root is no matter of the host's")
    parser.add_argument("--no-new-keyring", action="store_true", help="accepted: the host's keyring is not the guest's")
    parser.add_argument("id", metavar="CONTAINER")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the command."""
    from kata_runtime.oci.bundle import read_bundle
    from kata_runtime.shim.grouping import find_group

    reach.require_root()
    if options.preserve_fds:
        raise KataError("--preserve-fds: a container in a VM can't have descriptors of the host", hint="leave it out")
    bundle = read_bundle(Path(options.bundle))
    terminal = bool(bundle.spec["process"].get("terminal"))
    if terminal and not options.console_socket:
        raise KataError("process.terminal is true: somebody has to have the terminal", hint="--console-socket PATH")
    if options.console_socket and not terminal:
        raise KataError("--console-socket is for a process with a terminal: process.terminal is not true")
    annotations = {str(key): str(value) for key, value in (bundle.spec.get("annotations") or {}).items()}
    record = Record(
        id=options.id,
        bundle=str(bundle.directory),
        rootfs=str(bundle.rootfs),
        sandbox=find_group(annotations, options.id).sandbox_id,
        created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        annotations=annotations,
    )
    store = Store(options.root)
    store.reserve(record)
    config = str(Path(options.config).absolute()) if options.config else ""
    made = False
    try:
        status = stand_in(
            lambda started: _stand(record, store, config, options.console_socket, started), pid_file=options.pid_file
        )
        made = status == 0
        return status
    finally:
        if not made:
            _undo(store, record)


def _stand(record: Record, store: Store, config: str, console_socket: str, started: Started) -> int:
    with ExitStack() as stack:
        console = None
        if console_socket:
            console = Console(console_socket)
            stack.callback(os.close, console.descriptor)
            console.control()
        made = _create(record, store, config, console)
        with reach.Connection.open(made.sandbox) as connection:
            connection.send({"op": "attach", "container": made.id, "stands": True})
            store.write(made)
            started()
            return connection.follow(console.descriptor if console else None)


def _create(record: Record, store: Store, config: str, console: Console | None) -> Record:
    from google.protobuf.message import Message

    from kata_protos.containerd import task_pb2 as task
    from kata_protos.containerd.runtimeoptions_pb2 import Options
    from kata_runtime.engine import tasks

    made = replace(record, address=tasks.start_shim(record, store), pid=os.getpid(), began=began(os.getpid()))
    # Whoever has to undo it finds the shim by it.
    store.write(replace(made, pid=0))
    request = task.CreateTaskRequest(id=record.id, bundle=record.bundle, terminal=console is not None)
    names = [f"fd://{os.getpid()}/{console.descriptor if console else number}" for number in (0, 1, 2)]
    request.stdin, request.stdout = names[0], names[1]
    if console is None:
        request.stderr = names[2]
    if config:
        options: Message = Options(config_path=config)
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
    tasks.call(made, "Create", request, task.CreateTaskResponse, timeout=None)
    return made


def _undo(store: Store, record: Record) -> None:
    """Nothing stays of a container that could not be created."""
    with suppress(KataError):
        left = store.read(record.id)
        if left.address:
            from kata_runtime.engine.tasks import end_shim

            with suppress(HostError):
                end_shim(left, store)
    store.forget(record.id)
