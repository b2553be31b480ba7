"""Both ends of the pod's network with real namespaces, taps, tc and netlink; there is no VM."""

import asyncio
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from kata_agent.errors import InvalidError, NotFoundError, SetupError
from kata_agent.guest.network import Address, Interface, Neighbour, Network, Route
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox.network.namespace import Namespace
from kata_runtime.sandbox.network.network import Network as PodNetwork
from kata_runtime.sandbox.network.network import undo_leftover
from support.netns import Netns, made

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MAC, PEER = "0a:58:0a:07:00:02", "0a:58:0a:07:00:01"
V4, V6 = socket.AF_INET, socket.AF_INET6


def wire(pod: Netns, name: str = "eth0", mac: str = MAC) -> None:
    """Give a pod an interface that is set up; the other end is in the pod as well."""
    pod.ip(f"link add {name} address {mac} mtu 1400 type veth peer name p-{name} address {PEER}")
    for command in (f"link set {name} up", f"link set p-{name} up", f"addr add 10.7.0.2/24 dev {name}"):
        pod.ip(command)
    # It shall not become an interface of the pod's: ports of a bridge are none.
    pod.ip(f"link add br-{name} type bridge")
    pod.ip(f"link set p-{name} master br-{name}")


async def test_frames_go_both_ways_unchanged(tmp_path: Path) -> None:
    with made() as (pod,), ExitStack() as stack:
        wire(pod)
        before = pod.state()
        async with PodNetwork.opened(str(pod.path), tmp_path / "record") as network:
            (device,) = network.devices(stack, vhost=False)
            assert (device.mac, device.vhost_fd) == (MAC, -1)
            assert pod.json("link show tap0_kata")[0]["mtu"] == 1400
            frame = (
                bytes.fromhex(PEER.replace(":", "")) + bytes.fromhex(MAC.replace(":", "")) + b"\x88\xb5" + b"x" * 1386
            )
            wire_end = pod.inside(lambda: listen("p-eth0"))
            with wire_end:
                # virtio's header of ten zero bytes: nothing is left to be done to the frame.
                os.write(device.tap_fd, bytes(10) + frame)
                while wire_end.recv(2000) != frame:
                    pass
                answer = frame[6:12] + frame[:6] + frame[12:]
                wire_end.send(answer)
                assert await read_frame(device.tap_fd, answer) == answer
        assert "ingress" not in pod.tc("qdisc show dev eth0")
        assert not (tmp_path / "record").exists()
        stack.close()
        assert pod.state() == before


def listen(name: str) -> socket.socket:
    wire_end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire_end.bind((name, 3))  # ETH_P_ALL (linux/if_ether.h): a bridge takes all others from its ports
    wire_end.settimeout(10)
    return wire_end


async def read_frame(tap: int, wanted: bytes) -> bytes:
    """The frame `wanted`, or the timeout's end: the kernel says things of its own on a link."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while True:
            readable = asyncio.Event()
            loop.add_reader(tap, readable.set)
            await readable.wait()
            loop.remove_reader(tap)
            data = os.read(tap, 4096)[10:]
            if data == wanted:
                return data


async def test_interfaces_that_come_later(tmp_path: Path) -> None:
    with made() as (pod,), ExitStack() as stack:
        async with PodNetwork.opened(str(pod.path), tmp_path / "record") as network:
            assert network.devices(stack, vhost=False) == ()
            assert not (tmp_path / "record").exists()
            wire(pod)
            assert await network.add_endpoints() == 1
            assert await network.add_endpoints() == 0
            wire(pod, "net1", "0a:58:0a:07:00:03")
            assert await network.add_endpoints() == 1
            devices = network.devices(stack, vhost=False)
            assert [device.id for device in devices] == ["network-0", "network-1"]
        stack.close()
        assert pod.traces() == []


async def test_one_vm_per_namespace(tmp_path: Path) -> None:
    with made() as (pod,):
        wire(pod)
        async with PodNetwork.opened(str(pod.path), tmp_path / "first"):
            with pytest.raises(SandboxError, match="tap0_kata can't be made") as caught:
                async with PodNetwork.opened(str(pod.path), tmp_path / "second"):
                    pass
            assert "each needs its own" in caught.value.hint
            # The first one's are untouched.
            assert len(pod.traces()) == 3


async def test_an_interface_that_somebody_has_hold_of(tmp_path: Path) -> None:
    with made() as (pod,):
        wire(pod)
        wire(pod, "net1", "0a:58:0a:07:00:03")
        pod.tc("qdisc add dev net1 ingress")
        with pytest.raises(SandboxError, match="interface net1 has an ingress qdisc already"):
            async with PodNetwork.opened(str(pod.path), tmp_path / "record"):
                pass
        # What was done to eth0 is undone, and what somebody did to net1 is not.
        assert pod.traces() == ["qdisc ingress ffff: dev net1 parent ffff:fff1 ---------------- "]
        assert not (tmp_path / "record").exists()


async def test_a_killed_runtime_is_tidied_up_after(tmp_path: Path) -> None:
    with made() as (pod,):
        wire(pod)
        record = tmp_path / "network.json"
        async with PodNetwork.opened(str(pod.path), record):
            written = record.read_text()
            assert len(pod.traces()) == 3
            undo_leftover(record)
            assert len(pod.traces()) == 2  # the tap and its qdisc are there as long as somebody has the tap open
            assert not record.exists()
            record.write_text(written)
            undo_leftover(record)  # again, or after CNI has done it


async def test_a_namespace_of_its_own_goes_with_its_last_user() -> None:
    with Namespace.made() as namespace:
        name = os.readlink(f"/proc/self/fd/{namespace.fd}")  # noqa: PTH115 - it is no path
    assert all(os.readlink(f"/proc/self/fd/{fd.name}") != name for fd in Path("/proc/self/fd").iterdir() if fd.exists())  # noqa: PTH115


# The agent's end.


def in_guest(netns: Netns, work: object) -> None:
    """Run a coroutine function as the agent would, with `netns` for the guest's namespace."""
    netns.inside(lambda: asyncio.run(work()))  # type: ignore[operator]


async def no_driver() -> None:
    raise AssertionError("there is nothing to load a driver for")


def test_the_guest_is_set_up_as_the_pod_was() -> None:
    with made() as (guest,):
        guest.ip(f"link add ethX address {MAC} type veth peer name peer")
        guest.ip("link set peer up")

        async def work() -> None:
            network = Network(no_driver)
            addresses = [Address(V4, "10.7.0.2", 24), Address(V6, "fd07::2", 64)]
            assert await network.update_interface(Interface(MAC, "eth0", 1400, addresses)) == "ethX"
            # Again is no error.
            assert await network.update_interface(Interface(MAC, "eth0", 1400, addresses)) == "eth0"
            listed = [
                Route(V4, "", "10.7.0.1", "eth0", "", 0, 0, 3, 0),
                Route(V6, "", "fd07::1", "eth0", "", 0, 0, 3, 1024),
                Route(V4, "10.7.0.0/24", "", "eth0", "10.7.0.2", 253, 0, 2, 0),
                Route(V6, "fd07::/64", "", "eth0", "", 0, 0, 2, 256),
                Route(V4, "10.10.0.0/16", "192.168.77.1", "eth0", "", 0, 4, 3, 77),
            ]
            network.update_routes(listed)
            network.update_routes(listed)
            network.add_neighbours([Neighbour(V4, "10.7.0.77", "eth0", PEER, 0x80, 0)])
            network.add_neighbours([Neighbour(V6, "fd07::77", "eth0", PEER, 0x80, 0)])

        in_guest(guest, work)
        (link,) = guest.json("addr show eth0")
        assert link["mtu"] == 1400
        assert {(entry["local"], entry["prefixlen"]) for entry in link["addr_info"]} >= {
            ("10.7.0.2", 24),
            ("fd07::2", 64),
        }
        assert not any(entry.get("tentative") for entry in link["addr_info"])
        routes = guest.ip("route") + guest.ip("-6 route")
        for line in (
            "default via 10.7.0.1 dev eth0",
            "10.7.0.0/24 dev eth0 proto kernel scope link src 10.7.0.2",
            "10.10.0.0/16 via 192.168.77.1 dev eth0 metric 77 onlink",
            "fd07::/64 dev eth0 proto kernel metric 256",
            "default via fd07::1 dev eth0 metric 1024",
        ):
            assert line in routes
        assert routes.count("fd07::/64") == 1
        neighbours = guest.ip("neigh")
        assert f"10.7.0.77 dev eth0 lladdr {PEER} PERMANENT" in neighbours
        assert f"fd07::77 dev eth0 lladdr {PEER} PERMANENT" in neighbours


def test_names_that_are_taken_by_the_wrong_device() -> None:
    with made() as (guest,):
        other = "0a:58:0a:07:00:03"
        guest.ip(f"link add eth0 address {MAC} type veth peer name p0")
        guest.ip(f"link add eth1 address {other} type veth peer name p1")

        async def work() -> None:
            network = Network(no_driver)
            await network.update_interface(Interface(other, "eth0", 0, []))
            await network.update_interface(Interface(MAC, "eth1", 0, []))

        in_guest(guest, work)
        assert {link["ifname"]: link["address"] for link in guest.json("link") if link["ifname"].startswith("eth")} == {
            "eth0": other,
            "eth1": MAC,
        }


def test_a_device_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kata_agent.guest.network._DRIVER", Path("/nonexistent"))
    with made() as (guest,):
        started = asyncio.Event()

        async def load() -> None:
            started.set()

        async def work() -> None:
            waiting = asyncio.create_task(Network(load).update_interface(Interface(MAC, "eth0", 0, [])))
            await started.wait()
            guest.ip(f"link add later address {MAC} type veth peer name p0")
            assert await waiting == "later"

        in_guest(guest, work)


def test_what_the_guest_refuses() -> None:
    with made() as (guest,):
        guest.ip(f"link add eth0 address {MAC} type veth peer name p0")

        async def work() -> None:
            network = Network(no_driver)
            good = Interface(MAC, "eth0", 0, [])
            for wrong in (
                good._replace(mac="0a:00"),
                good._replace(name="a/b"),
                good._replace(name="x" * 16),
                good._replace(mtu=20),
                good._replace(addresses=[Address(V4, "fd07::2", 64)]),
                good._replace(addresses=[Address(V4, "10.0.0.1", 33)]),
            ):
                with pytest.raises(InvalidError):
                    await network.update_interface(wrong)
            await network.update_interface(good)
            route = Route(V4, "", "10.99.0.1", "eth0", "", 0, 0, 3, 0)
            with pytest.raises(SetupError, match="can't add route default: Network is unreachable"):
                network.update_routes([route])
            with pytest.raises(NotFoundError, match="no interface 'eth7'"):
                network.update_routes([route._replace(device="eth7")])
            with pytest.raises(InvalidError):
                network.update_routes([route._replace(destination="10.0.0.0")])
            with pytest.raises(InvalidError):
                network.add_neighbours([Neighbour(V4, "10.0.0.1", "eth0", "zz", 0x80, 0)])

        in_guest(guest, work)
