"""Debian's Podman with networks of netavark and CNI, in a network namespace that stands for the host."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import netns
from support.kata import Kata
from support.podman import BUSY, Podman, missing

pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(missing()), reason=missing())]
SERVER = "mkdir /tmp/w; echo $0 >/tmp/w/index.html; httpd -f -p 80 -h /tmp/w"


@pytest.fixture
def host() -> Iterator[netns.Netns]:
    with netns.made() as [host]:
        yield host


@pytest.fixture
def podman(request: pytest.FixtureRequest, host: netns.Netns, kata: Kata, tmp_path: Path) -> Iterator[Podman]:
    podman = Podman(tmp_path / "podman", kata, prefix=host.prefix, network=getattr(request, "param", "netavark"))
    podman.prepare()
    yield podman
    podman.close()


def fetch(host: netns.Netns, address: str, port: int) -> str:
    """As somebody on the host would."""
    return host.ask(address, port, b"GET / HTTP/1.0\r\n\r\n").decode().partition("\r\n\r\n")[2]


@pytest.mark.parametrize("podman", ["netavark", "cni"], indirect=True)
def test_a_published_port_and_a_pod(podman: Podman, host: netns.Netns) -> None:
    done = podman("run", "-d", "--name", "w", "-p", "8081:80", BUSY, "sh", "-c", SERVER, "published")
    assert done.returncode == 0, done.stderr
    [inspected] = json.loads(podman("inspect", "w").stdout)
    network = inspected["NetworkSettings"]
    address, gateway = network["IPAddress"], network["Gateway"]
    assert address
    # The container has the address that Podman has given it, and its gateway.
    shown = podman("exec", "w", "ip", "addr", "show", "eth0").stdout
    assert f"inet {address}/" in shown
    assert f"default via {gateway}" in podman("exec", "w", "ip", "route").stdout
    assert fetch(host, address, 80) == "published\n"
    assert fetch(host, gateway, 8081) == "published\n"
    # From one container to the other, as runc's.
    done = podman("run", "--rm", BUSY, "wget", "-q", "-O", "-", f"http://{address}/")
    assert (done.stdout, done.returncode) == ("published\n", 0), done.stderr
    assert podman("rm", "-f", "-t", "0", "w").returncode == 0
    assert list(podman.root.iterdir()) == []
    # A pod: the port is the pod's, the server one of its containers', the client another.
    done = podman("pod", "create", "--name", "p", "-p", "8082:80", "--infra-command", "/bin/sleep 1000")
    assert done.returncode == 0, done.stderr
    done = podman("run", "-d", "--pod", "p", "--name", "s", BUSY, "sh", "-c", SERVER, "of the pod")
    assert done.returncode == 0, done.stderr
    done = podman("run", "--rm", "--pod", "p", BUSY, "wget", "-q", "-O", "-", "http://127.0.0.1/")
    assert (done.stdout, done.returncode) == ("of the pod\n", 0), done.stderr
    assert fetch(host, gateway, 8082) == "of the pod\n"
    assert podman("pod", "rm", "-f", "-t", "0", "p").returncode == 0
    assert list(podman.root.iterdir()) == []


def test_what_podman_says_of_a_container_beside_runc(podman: Podman, tmp_path: Path) -> None:
    """`logs`, `top`, `stats`, volumes and `-it`; and a checkpoint, which is refused in a sentence."""
    script = "echo out; echo err >&2; echo kept >/data/file; sleep 1000"
    said: dict[str, list[str]] = {}
    for runtime in ("", "runc"):
        done = podman("run", "-d", "--name", "w", "-v", f"v{runtime}:/data", BUSY, "sh", "-c", script, runtime=runtime)
        assert done.returncode == 0, done.stderr
        done = podman("exec", "w", "sh", "-c", "until test -s /data/file; do sleep 0.1; done; cat /data/file")
        logs = podman("logs", "w")
        top = podman("top", "w", "-ef", runtime=runtime)
        volume = json.loads(podman("volume", "inspect", f"v{runtime}").stdout)[0]["Mountpoint"]
        said[runtime] = [done.stdout, logs.stdout, logs.stderr, Path(volume, "file").read_text()]
        assert "sleep 1000" in top.stdout, top.stderr
        stats = podman("stats", "--no-stream", "--format", "json", "w", runtime=runtime)
        assert json.loads(stats.stdout)[0]["name"] == "w", stats.stderr
        if not runtime:
            checkpoint = podman("container", "checkpoint", "w")
            assert checkpoint.returncode != 0
            assert "checkpoint" in checkpoint.stderr
            assert len(checkpoint.stderr.splitlines()) <= 3, checkpoint.stderr
        assert podman("rm", "-f", "-t", "0", "w", runtime=runtime).returncode == 0
    assert said[""] == said["runc"] == ["kept\n", "out\n", "err\n", "kept\n"]


def test_a_terminal(podman: Podman) -> None:
    main, side = os.openpty()
    try:
        command = podman.argv("run", "--rm", "-it", BUSY, "sh", "-c", "test -t 0 && stty size && read x && echo got $x")
        with subprocess.Popen(command, env=podman.environment, stdin=side, stdout=side, stderr=side) as child:
            os.write(main, b"word\n")
            seen = b""
            while b"got word" not in seen:
                seen += os.read(main, 1000)
            assert child.wait(timeout=60) == 0
    finally:
        os.close(main)
        os.close(side)
