"""Clients that lose patience while a guest boots, and a containerd that ends then: nothing of a sandbox may stay.

containerd cancels what it does for them at any point, and of its own tidying up whatever uses the same context; the
shim may hear of neither (core/runtime/v2 and plugins/sandbox/controller.go of containerd 2.4.2).
"""

import os
import signal

import grpc
import pytest

from support import processes
from support.containerd import IMAGE, Containerd, eventually, major_version
from support.cri import cri_pb2 as pb
from support.cri.client import Cri
from support.kata_containers import RUNTIME, KataContainers

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

# Seconds; the shim ends when nobody has been connected to it for 10.
PATIENCE = 40


def _processes(containerd: Containerd, what: str) -> list[int]:
    """Processes with `what` in their command line, and this containerd's address there or in their parent's."""
    return processes.pids(what.encode(), str(containerd.address).encode(), parents=True)


def _nothing_remains(containerd: Containerd) -> None:
    def remains() -> list[int]:
        return [pid for what in ("qemu-system", "kata_shim.py") for pid in _processes(containerd, what)]

    eventually(lambda: not remains(), "a shim or a VM stays", seconds=PATIENCE)


@pytest.mark.parametrize("how", ["deadline", "cancelled", "containerd ends"])
@pytest.mark.parametrize("handler", ["kata", "kata-sandbox"] if major_version() >= 2 else ["kata"])
def test_a_pod_that_nobody_waits_for(cri: Cri, handler: str, how: str) -> None:
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="hasty", uid="hasty", namespace="default"))
    run = cri.begin(
        "RunPodSandbox",
        pb.RunPodSandboxRequest(config=config, runtime_handler=handler),
        timeout=2 if how == "deadline" else None,
    )
    if how == "deadline":
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            run.result()
    else:
        eventually(lambda: _processes(cri.containerd, "qemu-system"), "no VM boots", seconds=30)
        if how == "cancelled":
            run.cancel()
    # In the middle of its own tidying up.
    cri.containerd.stop()
    _nothing_remains(cri.containerd)


@pytest.mark.parametrize("stops", [False, True])
def test_a_task_that_nobody_waits_for(kata: KataContainers, stops: bool) -> None:
    containerd = kata.containerd
    client = containerd.popen("run", "--rm", *RUNTIME, IMAGE, "hasty", "true")
    eventually(lambda: _processes(containerd, "qemu-system"), "no VM boots", seconds=30)
    os.kill(client.pid, signal.SIGKILL)
    client.communicate(timeout=10)
    if stops:
        containerd.stop()
    _nothing_remains(containerd)
