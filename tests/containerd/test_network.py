"""The pod's network, with real guests: what is in a network namespace reaches the guest."""

import json
from collections.abc import Iterator

import pytest

from support.kata_containers import KataContainers
from support.netns import Netns, made

pytestmark = [pytest.mark.containerd, pytest.mark.vm, pytest.mark.slow]

# A web server with one page.
SERVER = ("sh", "-c", "busybox mkdir /www; echo pong > /www/ping; exec busybox httpd -f -p 8001 -h /www")
GET = b"GET /ping HTTP/1.0\r\n\r\n"


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
    numbers = json.loads(kata.tasks("metrics", "--format", "json", "box").stdout)["pids"]
    assert numbers["current"] >= 1
    kata.tasks("delete", "--force", "box")
    assert pod.traces() == []
    assert pod.state() == before
    spans = {span.name: span for span in kata.trace("box").spans}
    assert {"createNetwork", "setupTCFiltering", "update_interface", "update_routes", "removeNetwork"} <= set(spans)
    kata.containerd.ctr("containers", "delete", "box")
    kata.nothing_remains()
