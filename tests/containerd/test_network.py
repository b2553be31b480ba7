"""The pod's network, with real guests: what is in a network namespace reaches the guest."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_protos.containerd import task_pb2
from kata_protos.containerd.cgroups2_pb2 import Metrics, NetworkStat
from kata_runtime.shim.ttrpc.client import Client
from support.containerd import IMAGE, eventually, shim_pid, write_shim
from support.kata_containers import KataContainers
from support.netns import Netns, made

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

# A web server with one page.
SERVER = ("sh", "-c", "busybox mkdir /www; echo pong > /www/ping; exec busybox httpd -f -p 8001 -h /www")
GET = b"GET /ping HTTP/1.0\r\n\r\n"
LOOK = "for what in link addr route '-6 route' neigh; do busybox ip $what; done; busybox hostname"


def joining(pod: Netns) -> tuple[str, str]:
    """`ctr run` in this namespace."""
    return ("--with-ns", f"network:{pod.path}")


@pytest.fixture
def wired() -> Iterator[tuple[Netns, Netns]]:
    """A pod's namespace and a host's, connected as CNI's ptp and bridge do it, with both kinds of addresses."""
    with made(2) as (pod, host):
        pod.ip(f"link add eth0 mtu 1400 address 0a:58:0a:07:00:02 type veth peer name veth0 netns {host.name}")
        for command in (
            "link set veth0 up mtu 1400",
            "addr add 10.7.0.1/24 dev veth0",
            "addr add fd07::1/64 dev veth0 nodad",
        ):
            host.ip(command)
        for command in (
            *("link set eth0 up", "addr add 10.7.0.2/24 dev eth0", "addr add fd07::2/64 dev eth0 nodad"),
            *("route add default via 10.7.0.1", "route add default via fd07::1 dev eth0"),
            *("route add 10.9.0.0/16 dev eth0 scope link", "route add 10.10.0.0/16 via 192.168.77.1 dev eth0 onlink"),
            *("route add 10.11.0.0/16 via 10.7.0.1 metric 77", "route add fd09::/64 via fd07::1 metric 55"),
            *(
                "neigh add 10.7.0.77 lladdr 0a:58:0a:07:00:77 dev eth0",
                "neigh add fd07::77 lladdr 0a:58:0a:07:00:77 dev eth0",
            ),
        ):
            pod.ip(command)
        yield pod, host


def test_a_pod_in_its_namespace(kata: KataContainers, wired: tuple[Netns, Netns]) -> None:
    pod, host = wired
    before = pod.state()
    kata.tracing()
    kata.detached("box", *SERVER, options=joining(pod))
    # The host reaches the guest, and the guest the host.
    for address in ("10.7.0.2", "fd07::2"):
        assert host.ask(address, 8001, GET).endswith(b"pong\n")
    for address in ("10.7.0.1", "fd07::1"):
        with host.listening(address) as (port, heard):
            done = kata.exec("box", f"e{port}", "sh", "-c", f"echo from the guest | busybox nc {address} {port}")
            assert done.returncode == 0, done.stderr
            assert heard.result() == b"from the guest\n"
    (eth0,) = network_stats(kata, "box")
    assert eth0.name == "eth0"
    assert min(eth0.rx_bytes, eth0.tx_bytes, eth0.rx_packets, eth0.tx_packets) > 0
    # All that the pod's namespace said is said in the guest.
    inside = kata.exec("box", "look", "sh", "-c", f"{LOOK}").stdout.decode()
    for line in (
        *("link/ether 0a:58:0a:07:00:02", "mtu 1400", "inet 10.7.0.2/24", "inet6 fd07::2/64"),
        *("default via 10.7.0.1 dev eth0", "10.9.0.0/16 dev eth0 scope link", "10.11.0.0/16 via 10.7.0.1 dev eth0"),
        *("10.10.0.0/16 via 192.168.77.1 dev eth0", "metric 77", "default via fd07::1 dev eth0  metric 1024"),
        *(
            "fd09::/64 via fd07::1 dev eth0  metric 55",
            "10.7.0.77 dev eth0 lladdr 0a:58:0a:07:00:77",
            "fd07::77 dev eth0",
        ),
    ):
        assert line in inside, inside
    assert inside.endswith("box\n")  # its host name
    kata.tasks("delete", "--force", "box")
    assert pod.traces() == []
    assert pod.state() == before
    spans = {span.name: span for span in kata.trace("box").spans}
    assert {"createNetwork", "setupTCFiltering", "update_interface", "update_routes", "removeNetwork"} <= set(spans)
    kata.containerd.ctr("containers", "delete", "box")
    kata.nothing_remains()


def network_stats(kata: KataContainers, name: str) -> list[NetworkStat]:
    """What the shim tells of the guest's interfaces; `ctr` 1.6 shows none of it."""
    address = (kata.containerd.state / "io.containerd.runtime.v2.task" / "default" / name / "address").read_text()

    async def ask() -> task_pb2.StatsResponse:
        async with await Client.connect(address) as client:
            request = task_pb2.StatsRequest(id=name)
            return await client.call("containerd.task.v2.Task", "Stats", request, task_pb2.StatsResponse)

    return list(Metrics.FromString(asyncio.run(ask()).stats.value).network)


def test_interfaces_that_come_between_create_and_start(kata: KataContainers, tmp_path: Path, shims: Path) -> None:
    engine = tmp_path / "engine"
    with made() as (host,):
        engine.write_text(
            "#!/bin/sh -ex\n"
            f"for number in 0 1; do\n"
            f"ip -n {host.name} link add v$number type veth peer name eth$number\n"
            f"ip -n {host.name} link set eth$number netns $1\n"
            f"ip -n {host.name} link set v$number up\n"
            f"ip -n {host.name} addr add 10.7.$number.1/24 dev v$number\n"
            f"ip -n {host.name} addr add fd07:$number::1/64 dev v$number nodad\n"
            "pod='nsenter --net=/proc/'$1'/ns/net ip'\n"
            "$pod link set eth$number up\n"
            "$pod addr add 10.7.$number.2/24 dev eth$number\n"
            "$pod addr add fd07:$number::2/64 dev eth$number nodad\n"
            "done\n"
            "$pod route add default via 10.7.0.1\n"
        )
        engine.chmod(0o755)
        late = Path(__file__).parents[1] / "support" / "late_shim.py"
        environment = {"KATA_TEST_ENGINE": str(engine)}
        write_shim(shims / "containerd-shim-late-v2", sys.executable, late, environment)
        kata.tracing()
        command = ("run", "--detach", "--runtime", "io.containerd.late.v2", IMAGE, "late", *SERVER)
        kata.containerd.ctr(*command, timeout=240)
        for address in ("10.7.0.2", "10.7.1.2", "fd07:0::2", "fd07:1::2"):
            assert host.ask(address, 8001, GET).endswith(b"pong\n")
        assert sorted(entry.name for entry in network_stats(kata, "late")) == ["eth0", "eth1"]
        kata.tasks("delete", "--force", "late")
        # The namespace was the sandbox's own, and has ended with it.
        eventually(lambda: len(host.json("link")) == 1, "the sandbox's namespace goes on")
        names = [span.name for span in kata.trace("late").spans]
        assert names.count("HotAttach") == names.count("HotplugAddDevice") == 2


class Cni:
    """Debian's CNI plugins on a bridge in a host's namespace."""

    def __init__(self, host: Netns, directory: Path) -> None:
        ranges = [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd08::/64"}]]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        ipam = {"type": "host-local", "dataDir": str(directory), "ranges": ranges, "routes": routes}
        network = {"cniVersion": "0.4.0", "name": "kata-test", "type": "bridge", "bridge": "kata0", "mtu": 1450}
        self._config = json.dumps({**network, "isGateway": True, "ipam": ipam})
        self._host = host

    def __call__(self, command: str, pod: Netns) -> dict[str, Any]:
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": pod.name, "CNI_NETNS": str(pod.path)}
        done = subprocess.run(
            ["ip", "netns", "exec", self._host.name, "/usr/lib/cni/bridge"],
            input=self._config,
            env={**os.environ, **environment, "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout or "{}")
        return result


def test_two_pods_on_a_cni_bridge(kata: KataContainers, tmp_path: Path) -> None:
    with made(3) as (host, first, second):
        cni = Cni(host, tmp_path)
        addresses = {pod: [ip["address"].partition("/")[0] for ip in cni("ADD", pod)["ips"]] for pod in (first, second)}
        before = first.state()
        kata.detached("one", *SERVER, options=joining(first))
        kata.detached("two", "sleep", "1000", options=joining(second))
        for number, address in enumerate(addresses[first]):
            assert host.ask(address, 8001, GET).endswith(b"pong\n")
            # Not wget, for which a static busybox wants libraries for names.
            get = f"printf 'GET /ping HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 60 {address} 8001"
            done = kata.exec("two", f"get{number}", "sh", "-c", get)
            assert done.stdout.endswith(b"pong\n"), done
        with host.listening("10.8.0.1") as (port, heard):
            kata.exec("two", "say", "sh", "-c", f"echo from a pod | busybox nc 10.8.0.1 {port}")
            assert heard.result() == b"from a pod\n"
        # Even a shim that was killed leaves nothing behind.
        os.kill(shim_pid(kata.containerd, "one"), signal.SIGKILL)
        eventually(lambda: not first.traces(), f"left in the namespace: {first.traces()}")
        assert first.state() == before
        kata.tasks("delete", "--force", "two")
        assert second.traces() == []
        cni("DEL", first)
        cni("DEL", second)
        assert [link["ifname"] for link in first.json("link")] == ["lo"]
    kata.nothing_remains()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/run/netns/no-such-namespace", "No such file"),
        (f"/proc/{os.getpid()}/ns/net", "is the host's network namespace"),
    ],
    ids=["gone", "of the host"],
)
def test_a_namespace_that_can_not_be_used(kata: KataContainers, path: str, said: str) -> None:
    done = kata.run("box", "true", options=("--with-ns", f"network:{path}"))
    assert done.returncode != 0
    assert path in done.stderr.decode()
    assert said in done.stderr.decode()
    kata.nothing_remains()
