"""Pods through containerd's CRI plugin, as a kubelet makes them, with real guests."""

import os
import signal
from pathlib import Path

import grpc
import pytest

from support.containerd import eventually
from support.cri import cri_pb2 as pb
from support.cri.client import Cri
from support.cri.websocket import STDERR, STDIN, STDOUT
from support.kata_containers import vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]


def test_a_pod_and_its_containers(cri: Cri) -> None:
    pod = cri.pod("web")
    assert pod.status.state == pb.SANDBOX_READY
    first = pod.container("first", "/bin/sh", "-c", "trap '' TERM; echo out; echo err >&2; sleep 1000")
    second = pod.container("second", "/bin/sh", "-c", "echo hello > /dev/shm/mark; exec sleep 1000")
    assert cri.status(first).state == pb.CONTAINER_RUNNING
    assert cri.exec(first, "sh", "-c", "echo inside; echo why >&2; exit 3") == (3, b"inside\n", b"why\n")
    # One pod, one guest: its name, and shared memory.
    for container in (first, second):
        assert cri.exec(container, "hostname") == (0, b"web\n", b"")
    eventually(lambda: cri.exec(first, "cat", "/dev/shm/mark") == (0, b"hello\n", b""), "no shared /dev/shm")
    # But each its own processes.
    processes = cri.exec(first, "ps")[1].decode()
    assert "hello > /dev/shm/mark" not in processes
    assert "sleep 1000" in processes
    assert "search test.example\nnameserver 192.0.2.53\n" in cri.exec(first, "cat", "/etc/resolv.conf")[1].decode()
    assert cri.exec(first, "cat", "/etc/hosts")[1] == Path("/etc/hosts").read_bytes()
    assert sorted(pod.log("first")) == [("stderr", "err"), ("stdout", "out")]

    # One ends by itself and comes again in the living pod.
    for attempt in range(2):
        job = pod.container("job", "/bin/sh", "-c", f"echo attempt {attempt}; exit {attempt + 4}")
        ended = cri.wait(job)
        assert (ended.exit_code, ended.reason) == (attempt + 4, "Error")
        assert pod.log("job") == [("stdout", f"attempt {attempt}")]
        cri.delete(job)
    # One is stopped: SIGTERM ends a shell that waits, SIGKILL what does not listen.
    trap = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done"
    polite = pod.container("polite", "/bin/sh", "-c", trap)
    eventually(lambda: cri.exec(polite, "true")[0] == 0, "it does not run")
    cri.kill(polite, 20)
    assert cri.wait(polite).exit_code == 0
    assert pod.log("polite") == [("stdout", "bye")]
    cri.kill(first, 1)
    assert cri.wait(first).exit_code == 137
    assert cri.status(second).state == pb.CONTAINER_RUNNING
    pod.stop()
    assert pod.status.state == pb.SANDBOX_NOTREADY
    assert cri.status(second).state == pb.CONTAINER_EXITED
    pod.remove()
    with pytest.raises(grpc.RpcError, match="not found"):
        cri.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id))


def test_streams(cri: Cri) -> None:
    pod = cri.pod("streams")
    shell = pod.container("shell", "/bin/sh", "-c", "while read line; do echo =$line; done", stdin=True)
    with cri.exec_stream(shell, ["sh", "-c", "cat; echo why >&2; exit 5"], stdin=True, stderr=True) as channels:
        channels.send(STDIN, b"there and back\n")
        assert channels.until(STDOUT, b"\n") == b"there and back\n"
        channels.send(STDIN, b"x" * 60_000 + b".")
        assert channels.until(STDOUT, b".") == b"x" * 60_000 + b"."
    with cri.exec_stream(shell, ["sh", "-c", "echo out; echo why >&2; exit 5"], stderr=True) as channels:
        assert channels.status()["details"]["causes"] == [{"reason": "ExitCode", "message": "5"}]
        assert (channels.to_end(STDOUT), channels.to_end(STDERR)) == (b"out\n", b"why\n")
    with cri.exec_stream(shell, ["no-such-command"], stderr=True) as channels:
        assert "no-such-command" in channels.status()["message"]
    with cri.exec_stream(shell, ["sh"], stdin=True, tty=True) as channels:
        channels.resize(91, 17)
        channels.send(STDIN, b"stty size; test -t 1 && echo termi''nal; exit 0\n")
        said = channels.until(STDOUT, b"\nterminal\r")
        assert b"\n17 91\r" in said, said
        assert channels.status()["status"] == "Success"

    for _ in range(2):  # one client goes, another one comes
        with cri.attach(shell, stdin=True, stderr=True) as channels:
            channels.send(STDIN, b"attached\n")
            assert channels.until(STDOUT, b"\n") == b"=attached\n"
    # The log is written beside the client's stream.
    eventually(lambda: pod.log("shell") == [("stdout", "=attached")] * 2, "a line is missing in the log")


def test_processes_of_a_pod(cri: Cri) -> None:
    pod = cri.pod("shared", shared_pid=True)
    main = pod.container("main", "/bin/sh", "-c", "sleep 1001; exit 9")
    side = pod.container("side", "/bin/sh", "-c", "sleep 1002")
    seen = cri.exec(side, "ps")[1].decode()
    for command in ("sleep 2147483647", "sleep 1001", "sleep 1002"):
        assert command in seen
    pids = {line.split()[0] for line in seen.splitlines() if line.rstrip().endswith(" sleep 1001")}
    assert len(pids) == 1, seen
    assert cri.exec(side, "kill", "-KILL", *pids)[0] == 0
    assert cri.wait(main).exit_code == 9
    assert cri.status(side).state == pb.CONTAINER_RUNNING


def test_limits_and_numbers(cri: Cri) -> None:
    pod = cri.pod("numbers")
    busy = pod.container("busy", "/bin/sh", "-c", "while :; do :; done", memory=64 << 20)

    def used() -> tuple[int, int]:
        stats = cri.call("ContainerStats", pb.ContainerStatsRequest(container_id=busy)).stats
        assert stats.attributes.id == busy
        return stats.cpu.usage_core_nano_seconds.value, stats.memory.working_set_bytes.value

    before, _ = used()
    assert before > 0
    eventually(lambda: used()[0] > before, "it uses no time")
    # Without what the kernel could take back at once, which is all of it in the beginning.
    eventually(lambda: 0 < used()[1] < 64 << 20, f"it uses a strange amount of memory: {used()}")
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=48 << 20, cpu_period=100_000, cpu_quota=50_000)
    cri.call("UpdateContainerResources", pb.UpdateContainerResourcesRequest(container_id=busy, linux=resources))
    limits = cri.exec(busy, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max")[1]
    assert limits == b"%d\n50000 100000\n" % (48 << 20)

    hungry = pod.container("hungry", "/bin/sh", "-c", "x=x; while :; do x=$x$x; done", memory=32 << 20)
    ended = cri.wait(hungry)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    assert cri.status(busy).state == pb.CONTAINER_RUNNING


def test_containerd_restarts_under_a_pod(cri: Cri) -> None:
    pod = cri.pod("survivor")
    shell = pod.container("shell", "/bin/sh", "-c", "while read line; do echo =$line; done", stdin=True)
    cri.containerd.stop()
    cri.containerd.start()
    cri.reconnect()
    eventually(cri.ready, "the CRI plugin does not become ready again")
    assert pod.status.state == pb.SANDBOX_READY
    assert cri.status(shell).state == pb.CONTAINER_RUNNING
    assert cri.exec(shell, "echo", "still here") == (0, b"still here\n", b"")
    with cri.attach(shell, stdin=True) as channels:
        channels.send(STDIN, b"again\n")
        assert channels.until(STDOUT, b"\n") == b"=again\n"
    pod.container("late", "/bin/sh", "-c", "sleep 1000")
    pod.remove()


def test_a_pod_whose_vm_dies(cri: Cri) -> None:
    pod = cri.pod("doomed")
    container = pod.container("one", "/bin/sh", "-c", "sleep 1000")
    (vm,) = vm_pids(pod.id)
    os.kill(vm, signal.SIGKILL)
    ended = cri.wait(container)
    assert ended.exit_code == 255
    eventually(lambda: pod.status.state == pb.SANDBOX_NOTREADY, "a pod without its VM is ready")
    pod.remove()


WEB = "busybox mkdir /www; echo pong > /www/ping; exec busybox httpd -f -h /www -p"
GET = b"GET /ping HTTP/1.0\r\n\r\n"


def test_port_forward(cri: Cri) -> None:
    pod = cri.pod("forwarded")
    # On the guest's localhost only: no address of the pod leads there.
    web = pod.container("web", "/bin/sh", "-c", f"{WEB} 127.0.0.1:8080")
    pod.container("echo", "/bin/sh", "-c", "exec busybox nc -ll -p 9000 -e cat")
    eventually(lambda: b":1F90" in cri.exec(web, "cat", "/proc/net/tcp")[1], "nobody listens")
    for _ in range(2):
        with pod.forward(8080) as channels:
            channels.send(0, GET)
            assert channels.until(0, b"pong\n").startswith(b"HTTP/1.")
    with pod.forward(9000) as channels:
        for number in range(10):
            data = bytes([number]) * 60_000 + b"."
            channels.send(0, data)
            assert channels.until(0, b".") == data
    with pod.forward(8081) as channels:
        assert channels.to_end(0) == b""


def test_two_pods_on_a_bridge(cri: Cri) -> None:
    server, client = cri.pod("server"), cri.pod("client")
    web = server.container("web", "/bin/sh", "-c", f"{WEB} [::]:8080")
    shell = client.container("shell", "/bin/sh", "-c", "exec sleep 1000")
    eventually(lambda: b":1F90" in cri.exec(web, "cat", "/proc/net/tcp6")[1], "nobody listens")
    four, six = server.ip, server.status.network.additional_ips[0].ip
    for address, url in ((four, four), (six, f"[{six}]")):
        # One pod to the other, and the host to the pod.
        assert cri.exec(shell, "busybox", "wget", "-q", "-O", "-", f"http://{url}:8080/ping") == (0, b"pong\n", b"")
        assert cri.network.ask(address, 8080, GET).endswith(b"pong\n")
    # The pod to the host.
    for gateway in ("10.133.7.1", "fd00:133:7::1"):
        with cri.network.listening(gateway) as (port, heard):
            assert cri.exec(shell, "sh", "-c", f"echo from the pod | nc {gateway} {port}")[0] == 0
            assert heard.result(30) == b"from the pod\n"
    assert cri.exec(web, "hostname")[1] == b"server\n"
