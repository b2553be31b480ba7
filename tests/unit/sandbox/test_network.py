"""The pod's network on the host: what of a namespace goes to the guest, and errors that name what is wrong."""

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from kata_common import netlink
from kata_common.netlink import attribute, attributes
from kata_protos import agent_pb2 as pb
from kata_runtime.errors import SandboxError
from kata_runtime.oci.network import network_namespace
from kata_runtime.sandbox.network import model
from kata_runtime.sandbox.network.model import Address, Interface, Neighbour, Route, Scan
from kata_runtime.sandbox.network.namespace import Namespace
from kata_runtime.sandbox.network.network import undo_leftover
from kata_runtime.sandbox.network.rtnetlink import interfaces, neighbours, redirection, routes

ETH0 = Interface(
    2, "eth0", "0a:58:0a:01:00:02", 1400, "veth", addresses=(Address(2, "10.1.0.2", 24), Address(10, "fd01::2", 64))
)
LO = Interface(1, "lo", "00:00:00:00:00:00", 65536, hardware=model.ARPHRD_LOOPBACK, flags=model.IFF_LOOPBACK)


def told(head: bytes, *values: tuple[int, bytes | int | str]) -> bytes:
    """As the kernel tells it: what is fixed, then attributes."""
    return head + b"".join(attribute(kind, value) for kind, value in values)


def ip(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def link(*values: tuple[int, bytes | int | str], hardware: int = 1) -> bytes:
    return told(netlink.LINK.pack(0, hardware, 2, 1, 0), (netlink.IFLA_IFNAME, "eth0"), *values)


def address(text: str, prefix: int, *, index: int = 2, flags: int = 128, peer: str = "") -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    local = ((netlink.IFA_LOCAL, ip(text)),) if family == socket.AF_INET else ()
    return told(netlink.ADDRESS.pack(family, prefix, flags, 0, index), (netlink.IFA_ADDRESS, ip(peer or text)), *local)


def route(
    destination: str = "", *values: tuple[int, bytes | int | str], family: int = 2, table: int = 254, kind: int = 1,
    proto: int = 3, scope: int = 0, flags: int = 0, device: int = 2,
) -> bytes:  # fmt: skip
    where, _, length = destination.partition("/")
    known: list[tuple[int, bytes | int | str]] = [(netlink.RTA_DST, ip(where))] if where else []
    known += [(netlink.RTA_OIF, device)] if device else []
    return told(netlink.ROUTE.pack(family, int(length or 0), 0, 0, table, proto, scope, kind, flags), *known, *values)


def test_interfaces_have_their_addresses() -> None:
    veth = attribute(netlink.IFLA_INFO_KIND, "veth") + attribute(2, b"data of its own")
    mac = bytes.fromhex(ETH0.mac.replace(":", ""))
    eth0 = link((netlink.IFLA_ADDRESS, mac), (netlink.IFLA_MTU, 1400), (netlink.IFLA_LINKINFO | 0x8000, veth))
    addresses = [
        address("10.1.0.2", 24),
        address("fd01::2", 64),
        address("fd01::abcd", 64, flags=1),  # temporary
        address("127.0.0.1", 8, index=1),
    ]
    assert interfaces([eth0], addresses) == (ETH0,)


def test_a_point_to_point_address_is_our_end() -> None:
    entry = address("10.1.0.2", 32, peer="10.1.0.1")
    assert interfaces([link()], [entry])[0].addresses == (Address(2, "10.1.0.2", 32),)


def test_routes_of_the_main_table() -> None:
    dropped: list[str] = []
    found = routes(
        [
            route("", (netlink.RTA_GATEWAY, ip("10.1.0.1")), (netlink.RTA_PRIORITY, 50), flags=4 | 16),
            route("10.1.0.0/24", (netlink.RTA_PREFSRC, ip("10.1.0.2")), scope=253, proto=2),
            route("10.5.0.0/16", table=100),
            route("10.5.0.0/16", (netlink.RTA_TABLE, 1000), table=252),
            route("fe80::/64", family=10),
            route("10.6.0.0/16", kind=7),  # unreachable
            route("", (9, b""), device=0),  # RTA_MULTIPATH
            route("", family=7),
        ],
        dropped,
    )
    assert found == (
        Route(2, 2, gateway="10.1.0.1", flags=model.RTNH_F_ONLINK, protocol=3, priority=50),
        Route(2, 2, "10.1.0.0/24", source="10.1.0.2", scope=253, protocol=2),
    )
    assert len(dropped) == 2
    assert dropped[0].startswith("route to 10.6.0.0/16")


def test_too_many_routes_are_said_to_be_too_many() -> None:
    dropped: list[str] = []
    assert len(routes([route("10.1.0.0/24")] * (model.MAX_ROUTES + 5), dropped)) == model.MAX_ROUTES
    assert len(dropped) == 1


def test_only_permanent_neighbours_with_an_address() -> None:
    def entry(state: int, mac: bytes = b"\x0a\0\0\0\0\1") -> bytes:
        head = netlink.NEIGHBOUR.pack(2, 2, state, 0, 1)
        return told(head, (netlink.NDA_DST, ip("10.1.0.9")), (netlink.NDA_LLADDR, mac))

    assert neighbours([entry(0x80), entry(0x02), entry(0x80, b"")]) == (
        Neighbour(2, 2, "10.1.0.9", "0a:00:00:00:00:01"),
    )


def test_the_filter_is_the_one_that_tc_makes() -> None:
    """`tc filter add dev A parent ffff: u32 match u32 0 0 action mirred egress redirect dev B`."""
    found = redirection(7, 9)
    assert netlink.TRAFFIC.unpack_from(found) == (0, 7, 0, 0xFFFF0000, socket.htons(3))
    known = attributes(found[netlink.TRAFFIC.size :])
    options = attributes(known[2])
    assert (known[1], options[1], options[5]) == (b"u32\0", bytes([1, 0, 1, 0]), bytes([1, 0, 1]) + bytes(29))
    action = attributes(attributes(options[7])[1])
    assert (action[1], attributes(action[2])[2]) == (b"mirred\0", struct.pack("=7I", 0, 0, 4, 0, 0, 1, 9))


def test_what_goes_to_the_guest() -> None:
    tunnel = Interface(4, "tunl0", "00:00:00:00", 1480, "ipip", hardware=768, flags=0)
    idle = Interface(5, "gretap0", "00:00:00:00:00:00", 1462, "gretap", flags=0)
    port = Interface(6, "veth1", "0a:00:00:00:00:06", 1500, "veth", master=7)
    tap = Interface(7, "tap0_kata", "0a:00:00:00:00:07", 1400, "tun")
    plain = Interface(8, "net1", "0a:00:00:00:00:08", 1500)
    assert Scan((LO, ETH0, tunnel, idle, port, tap, plain)).endpoints({"tap0_kata"}) == [ETH0, plain]


def test_an_interface_that_no_vm_can_have() -> None:
    wireguard = Interface(3, "wg0", "", 1420, "wireguard", hardware=65534, addresses=(Address(2, "10.8.0.2", 24),))
    with pytest.raises(SandboxError, match=r"wg0 .* can't be given to a VM: it is no Ethernet device \(kind wireguard"):
        Scan((LO, wireguard)).endpoints()


def test_messages_for_the_agent() -> None:
    link_local = Address(10, "fe80::1", 64)
    interface = model.to_interface(Interface(2, "eth0", ETH0.mac, 1400, addresses=(*ETH0.addresses, link_local)))
    assert (interface.name, interface.hwAddr, interface.mtu) == ("eth0", ETH0.mac, 1400)
    assert [(a.family, a.address, a.mask) for a in interface.IPAddresses] == [
        (pb.IPFamily.v4, "10.1.0.2", "24"),
        (pb.IPFamily.v6, "fd01::2", "64"),
    ]
    listed = [Route(2, 2, gateway="10.1.0.1"), Route(10, 9, "fd02::/64")]
    (sent,) = model.to_routes(listed, {2: "eth0"}).Routes
    assert (sent.device, sent.gateway, sent.dest) == ("eth0", "10.1.0.1", "")
    (neighbour,) = model.to_arp_neighbors([Neighbour(10, 2, "fd01::9", ETH0.mac)], {2: "eth0"}).ARPNeighbors
    assert (neighbour.toIPAddress.address, neighbour.lladdr, neighbour.state) == ("fd01::9", ETH0.mac, 0x80)


def specification(path: str | None = None, hooks: dict[str, Any] | None = None) -> dict[str, Any]:
    entry = {"type": "network"} | ({"path": path} if path is not None else {})
    return {"linux": {"namespaces": [{"type": "pid"}, entry]}, "hooks": hooks or {}}


def test_the_namespace_of_a_specification(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert network_namespace(specification("/run/netns/x")) == "/run/netns/x"
    assert network_namespace(specification()) == ""
    assert network_namespace(specification("/proc/0/ns/net")) == ""
    assert not caplog.messages
    assert network_namespace({"linux": {"namespaces": []}}) == ""
    assert "host's network" in caplog.text


@pytest.mark.parametrize("kind", ["prestart", "createRuntime"])
def test_the_namespace_that_a_hook_of_dockers_names(tmp_path: Path, kind: str) -> None:
    identity = "ab" * 32
    hook = {"path": "/proc/1/exe", "args": ["libnetwork-setkey", "-exec-root=/var/run/docker", identity, "12345678"]}
    wanted = specification("", {kind: [{"args": ["other"]}, hook]})
    assert network_namespace(wanted, (tmp_path,)) == ""  # it is not there yet
    (tmp_path / identity).touch()
    assert network_namespace(wanted, (tmp_path,)) == str(tmp_path / identity)
    hook["args"] = ["libnetwork-setkey", "../../etc"]
    assert network_namespace(wanted, (tmp_path,)) == ""


def test_a_namespace_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=f"{tmp_path}/gone: No such file"):
        Namespace.at(str(tmp_path / "gone"))


def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (str(tmp_path / "file"), "/proc/self/ns/mnt"):
        with pytest.raises(SandboxError, match="is not a network namespace"):
            Namespace.at(path)


def test_the_hosts_own_namespace() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(SandboxError, match="is the host's network namespace") as caught:
        Namespace.at("/proc/self/ns/net")
    assert "--net-host" in caught.value.hint
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_record_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = tmp_path / "network.json"
    undo_leftover(record)
    record.write_text(json.dumps({"namespace": "/run/netns/long-gone", "interfaces": {"eth0": 2}}))
    undo_leftover(record)
    assert not record.exists()
    assert not caplog.messages
    record.write_text("{")
    undo_leftover(record)
    assert "network.json can't be read" in caplog.text


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
async def test_work_inside_of_a_namespace() -> None:
    outside = socket.if_nameindex()
    with Namespace.made() as namespace:
        assert [name for _, name in await namespace.run(socket.if_nameindex)] == ["lo"]
        with pytest.raises(ZeroDivisionError):
            await namespace.run(lambda: 1 // 0)
        assert socket.if_nameindex() == outside
