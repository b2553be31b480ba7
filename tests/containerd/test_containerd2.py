"""What only containerd 2 asks of a shim: bootstrap parameters, and sandboxes without a pause container."""

import json

import pytest

from support.containerd import eventually
from support.cri import cri_pb2 as pb
from support.cri.client import Cri
from support.kata_containers import KataContainers, vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]


def test_version_3_of_the_shim_protocol(kata: KataContainers) -> None:
    kata.detached("bootstrapped", "sleep", "1000")
    bundle = kata.containerd.state / "io.containerd.runtime.v2.task" / "default" / "bootstrapped"
    said = json.loads((bundle / "bootstrap.json").read_text())
    assert (said["version"], said["protocol"]) == (3, "ttrpc")
    assert said["address"] == (bundle / "address").read_text()
    kata.tasks("delete", "--force", "bootstrapped")
    kata.nothing_remains()


def test_a_pod_by_the_sandbox_service(cri: Cri) -> None:
    cri.handler = "kata-sandbox"
    pod = cri.pod("unpaused", shared_pid=True)
    assert pod.status.state == pb.SANDBOX_READY
    assert len(vm_pids(pod.id)) == 1
    first = pod.container("first", "/bin/sh", "-c", "echo here > /dev/shm/mark; hostname; exec sleep 1000")
    eventually(lambda: pod.log("first") == [("stdout", "unpaused")], "no output")
    stats = cri.call("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=pod.id)).stats.linux
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert 0 < stats.memory.working_set_bytes.value < 64 << 20
    assert (stats.network.default_interface.name, stats.process.process_count.value) == ("eth0", 1)
    assert [container.attributes.id for container in stats.containers] == [first]
    # There is no pause container: a container that ends and comes again does not end the pod.
    for number in range(2):
        job = pod.container("job", "/bin/sh", "-c", f"cat /dev/shm/mark; exit {number}")
        assert cri.wait(job).exit_code == number
        assert pod.log("job") == [("stdout", "here")]
        cri.delete(job)
    assert b"sleep 2147483647" in cri.exec(first, "ps")[1]  # what keeps the pid namespace
    hungry = pod.container("hungry", "/bin/sh", "-c", "x=x; while :; do x=$x$x; done", memory=32 << 20)
    ended = cri.wait(hungry)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert cri.exec(first, "sh", "-c", "echo inside; exit 3") == (3, b"inside\n", b"")
    cri.containerd.stop()
    cri.containerd.start()
    cri.reconnect()
    eventually(cri.ready, "the CRI plugin does not become ready again")
    assert cri.exec(first, "echo", "still here") == (0, b"still here\n", b"")
    pod.stop()
    assert pod.status.state == pb.SANDBOX_NOTREADY
    assert cri.status(first).exit_code == 137
    assert vm_pids(pod.id) == []
    pod.remove()
