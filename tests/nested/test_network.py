"""A pod's network under KVM: what Debian's CNI plugins put into a namespace reaches the guest, by vhost-net."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import processes
from support.containerd import eventually
from support.kata_containers import KataContainers, vm_pids

pytestmark = [pytest.mark.containerd, pytest.mark.slow]

PLUGINS = Path("/usr/lib/cni")
# A web server with one page.
SERVER = ("sh", "-c", "busybox mkdir /www; echo pong > /www/ping; exec busybox httpd -f -p 8001 -h /www")


@dataclass(frozen=True)
class Network:
    """A namespace that a CNI plugin has wired to this host's."""

    path: str
    address: str

    def links(self) -> set[str]:
        """Names of the interfaces in it."""
        told = ip("-n", Path(self.path).name, "-j", "link")
        return {link["ifname"] for link in json.loads(told)}


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """The plugin `ptp`, called as containerd's CRI plugin calls it."""
    name = "kata-nested"
    path = f"/run/netns/{name}"
    ipam = {"type": "host-local", "subnet": "10.88.77.0/24", "dataDir": str(tmp_path), "routes": [{"dst": "0.0.0.0/0"}]}
    config = json.dumps({"cniVersion": "0.4.0", "name": name, "type": "ptp", "ipam": ipam})

    def plugin(command: str) -> str:
        settings = {"COMMAND": command, "CONTAINERID": name, "NETNS": path, "IFNAME": "eth0", "PATH": str(PLUGINS)}
        environment = {**os.environ, **{f"CNI_{key}": value for key, value in settings.items()}}
        done = subprocess.run(
            [PLUGINS / "ptp"], input=config, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    ip("netns", "add", name)
    try:
        told = json.loads(plugin("ADD"))
        yield Network(path, told["ips"][0]["address"].partition("/")[0])
        plugin("DEL")
    finally:
        ip("netns", "delete", name)


def ask(address: str) -> bytes:
    """The server's answer; nothing where it does not listen yet."""
    try:
        with socket.create_connection((address, 8001), timeout=60) as stream:
            stream.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: stream.recv(4096), b""))
    except ConnectionRefusedError:
        return b""


def test_a_pod_with_a_network(containers: KataContainers, network: Network, proof: Path) -> None:
    before = network.links()
    containers.detached("pod", *SERVER, options=("--with-ns", f"network:{network.path}"))
    (pid,) = vm_pids("pod")
    files = set(processes.open_files(pid).values())
    assert {"/dev/vhost-net", "/dev/net/tun"} <= files
    # That it listens, the server tells nobody.
    eventually(lambda: ask(network.address).endswith(b"pong\n"), "the server does not answer", seconds=60)
    containers.tasks("delete", "--force", "pod", check=False)
    assert network.links() == before
    with proof.open("a") as report:
        print(f"pod with a network: {network.address} answered over TCP, by /dev/vhost-net", file=report)
