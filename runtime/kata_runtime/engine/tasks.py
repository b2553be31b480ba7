"""Calls to a sandbox's shim, the same that containerd makes."""

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from kata_protos.containerd import task_pb2 as task
from kata_runtime.engine.store import Record, Store
from kata_runtime.errors import HostError, SandboxError
from kata_runtime.shim.ttrpc.client import Client
from kata_runtime.shim.ttrpc.errors import ConnectionLost

__all__ = ["NAMESPACE", "call", "end_shim", "start_shim"]

# containerd's namespaces keep apart what several clients call by the same name; here roots do.
NAMESPACE = "oci"
_SERVICE = task.DESCRIPTOR.services_by_name["Task"].full_name
_SHIM = "containerd-shim-kata-v2"
# Seconds for a shim to begin to listen.
_TIMEOUT = 30
_R = TypeVar("_R", bound=Message)


def call(record: Record, method: str, request: Message, response: type[_R], *, timeout: float | None = 60) -> _R:
    """Call a method of the shim of a container's sandbox.

    Raises:
        RpcError: its refusal, by its code; `ConnectionLost` where there is no shim any more.
    """

    async def make() -> _R:
        async with await Client.connect(record.address) as client:
            return await client.call(_SERVICE, method, request, response, timeout=timeout)

    return asyncio.run(make())


def status(record: Record) -> tuple[str, int]:
    """OCI's name of a container's state, and its exit status where it has ended."""
    from kata_protos.containerd.types_task_pb2 import CREATED, PAUSED, RUNNING

    if not record.address:
        return "creating", 0
    try:
        found = call(record, "State", task.StateRequest(id=record.id), task.StateResponse, timeout=10)
    except ConnectionLost:
        return "stopped", 137
    names = {CREATED: "created", RUNNING: "running", PAUSED: "paused"}
    # Who waits for the process that stands for it does so before it calls anything a state.
    return names.get(found.status, "stopped"), found.exit_status


def start_shim(record: Record, store: Store) -> str:
    """Start the shim of a container's sandbox, or find the one that a pod has; its address.

    Raises:
        HostError: it does not start; the message has its words.
    """
    program = Path(sys.argv[0]).absolute().with_name(_SHIM)
    path = str(program) if os.access(program, os.X_OK) else shutil.which(_SHIM)
    if path is None:
        raise HostError(f"{_SHIM} was not found", hint="it is installed beside kata-runtime")
    argv = [path, "-namespace", NAMESPACE, "-id", record.id, "-address", str(store.root), "start"]
    environment = {key: value for key, value in os.environ.items() if key != "TTRPC_ADDRESS"}
    done = subprocess.run(
        argv,
        cwd=record.bundle,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise HostError(f"the shim of container {record.id} does not start: {done.stderr.strip()}")
    return done.stdout.strip()


def end_shim(record: Record, store: Store) -> None:
    """End the shim, unless other containers need it, and whatever a killed one has left.

    Raises:
        SandboxError: something can't be cleaned up.
    """
    from kata_runtime.shim import delete
    from kata_runtime.shim.arguments import Arguments
    from kata_runtime.shim.cleanup import KataCleanup

    with suppress(ConnectionLost):  # with the answer on its way, or long ago
        call(record, "Shutdown", task.ShutdownRequest(id=record.id), Empty, timeout=10)
    if not record.owner:
        return
    arguments = Arguments()
    arguments.namespace, arguments.id, arguments.address = NAMESPACE, record.id, str(store.root)
    arguments.bundle = record.bundle
    try:
        delete.delete(arguments, KataCleanup())
    except ExceptionGroup as group:
        raise SandboxError(f"{group.message}: {'; '.join(map(str, group.exceptions))}") from group
