"""`start`, `state`, `kill`, `delete`, `pause`, `resume`: a container's states, as runc and crun have them."""

import argparse
import json
import signal
from contextlib import suppress

from kata_common.text import is_number
from kata_runtime.engine.store import Record, Store
from kata_runtime.errors import KataError, SandboxError
from kata_runtime.sandbox import reach

__all__ = ["add_arguments", "state_of"]

# That of the agent's specifications.
_VERSION = "1.0.2"
# Seconds for a container that is killed.
_PATIENCE = 15.0


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands and their options."""
    for name, handler, says in (
        ("start", _start, "start the process of a created container"),
        ("state", _state, "print a container's state as JSON"),
        ("pause", _pause, "freeze a container's processes"),
        ("resume", _resume, "let a paused container go on"),
    ):
        parser = commands.add_parser(name, help=says)
        parser.add_argument("id", metavar="CONTAINER")
        parser.set_defaults(run=handler)
    kill = commands.add_parser("kill", help="send a container a signal")
    kill.add_argument("-a", "--all", action="store_true", help="to all of its processes")
    kill.add_argument("id", metavar="CONTAINER")
    kill.add_argument("signal", metavar="SIGNAL", nargs="?", default="TERM", type=number_of, help="(default: TERM)")
    kill.set_defaults(run=_kill)
    delete = commands.add_parser("delete", help="remove a container that has stopped")
    delete.add_argument("-f", "--force", action="store_true", help="kill it first; one that does not exist is no error")
    delete.add_argument("id", metavar="CONTAINER")
    delete.set_defaults(run=_delete)


def number_of(text: str) -> int:
    """A signal by its number or its name, with SIG or without.

    Raises:
        ArgumentTypeError: there is no such signal.
    """
    if is_number(text):
        number = int(text)
    else:
        name = text.upper().removeprefix("SIG")
        number = getattr(signal.Signals.__members__.get(f"SIG{name}"), "value", 0)
        base, plus, offset = name.partition("+")
        if base == "RTMIN" and plus and is_number(offset):
            number = signal.SIGRTMIN + int(offset)
    if not 0 < number <= signal.SIGRTMAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no signal: a number up to {signal.SIGRTMAX:d}, or a name as TERM"
        )
    return number


def found(options: argparse.Namespace) -> Record:
    """The container that the command line names."""
    reach.require_root()
    return Store(options.root).read(options.id)


def state_of(record: Record) -> dict[str, object]:
    """What `state` prints: the runtime specification's fields, and runc's."""
    from kata_runtime.engine.tasks import status

    state, _ = status(record)
    # The call that ended it may not have been answered yet; its process is what counts.
    if state not in ("stopped", "creating") and not record.stands:
        state = "stopped"
    return {
        "ociVersion": _VERSION,
        "id": record.id,
        "pid": 0 if state == "stopped" else record.pid,
        "status": state,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": "",
        "annotations": dict(record.annotations),
    }


def _start(options: argparse.Namespace) -> int:
    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call

    record = found(options)
    call(record, "Start", task.StartRequest(id=record.id), task.StartResponse)
    return 0


def _state(options: argparse.Namespace) -> int:
    print(json.dumps(state_of(found(options)), indent=2))
    return 0


def _pause(options: argparse.Namespace) -> int:
    from google.protobuf.empty_pb2 import Empty

    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call

    record = found(options)
    call(record, "Pause", task.PauseRequest(id=record.id), Empty)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from google.protobuf.empty_pb2 import Empty

    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call

    record = found(options)
    call(record, "Resume", task.ResumeRequest(id=record.id), Empty)
    return 0


def _kill(options: argparse.Namespace) -> int:
    send(found(options), options.signal, everything=options.all)
    return 0


def send(record: Record, number: int, *, everything: bool = False) -> None:
    """Send a container a signal.

    Raises:
        KataError: it is not running.
    """
    from google.protobuf.empty_pb2 import Empty

    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call
    from kata_runtime.shim.ttrpc.errors import ConnectionLost, NotFound

    try:
        call(record, "Kill", task.KillRequest(id=record.id, signal=number, all=everything), Empty)
    except (ConnectionLost, NotFound) as error:
        raise SandboxError(f"container {record.id} is not running") from error


def _delete(options: argparse.Namespace) -> int:
    reach.require_root()
    store = Store(options.root)
    try:
        record = store.read(options.id)
    except SandboxError:
        if options.force:
            return 0
        raise
    _remove(record, store, force=options.force)
    return 0


def _remove(record: Record, store: Store, *, force: bool) -> None:
    from kata_protos.containerd import task_pb2 as task
    from kata_runtime.engine.tasks import call, end_shim, status
    from kata_runtime.shim.ttrpc.errors import ConnectionLost, NotFound

    if record.address:
        state, _ = status(record)
        if state in ("running", "paused"):
            if not force:
                raise SandboxError(
                    f"container {record.id} is {state}", hint=f"kata-runtime kill {record.id}, or delete --force"
                )
            with suppress(KataError):
                send(record, signal.SIGKILL, everything=True)
            with suppress(KataError):
                call(record, "Wait", task.WaitRequest(id=record.id), task.WaitResponse, timeout=_PATIENCE)
        with suppress(ConnectionLost, NotFound):
            call(record, "Delete", task.DeleteRequest(id=record.id), task.DeleteResponse)
        end_shim(record, store)
    store.forget(record.id)
