"""The pod's network on the host: what of a namespace goes to the guest, and errors that name what is wrong."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from kata_protos import agent_pb2 as pb
from kata_runtime.errors import SandboxError
from kata_runtime.oci.network import network_namespace
from kata_runtime.sandbox.network import model
from kata_runtime.sandbox.network.model import Address, Interface, Neighbour, Route, Scan
from kata_runtime.sandbox.network.namespace import Namespace
from kata_runtime.sandbox.network.network import undo_leftover
from kata_runtime.sandbox.network.rtnetlink import interfaces, neighbours, routes

ETH0 = Interface(
    2, "eth0", "0a:58:0a:01:00:02", 1400, "veth", addresses=(Address(2, "10.1.0.2", 24), Address(10, "fd01::2", 64))
)
LO = Interface(1, "lo", "00:00:00:00:00:00", 65536, hardware=model.ARPHRD_LOOPBACK, flags=model.IFF_LOOPBACK)


def message(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """As pyroute2 decodes one."""
    return {**fields, "attrs": list(attributes.items())}


def route(destination: str = "", **fields: Any) -> dict[str, Any]:
    address, _, length = destination.partition("/")
    attributes = {name: fields.pop(name) for name in list(fields) if name.startswith("RTA_")}
    if address:
        attributes["RTA_DST"] = address
    known = {"family": 2, "dst_len": int(length or 0), "table": 254, "type": 1, "scope": 0, "flags": 0, "proto": 3}
    return message({"RTA_OIF": 2, **attributes}, **{**known, **fields})


def test_interfaces_have_their_addresses() -> None:
    link = message(
        {"IFLA_IFNAME": "eth0", "IFLA_ADDRESS": ETH0.mac, "IFLA_MTU": 1400,
         "IFLA_LINKINFO": message({"IFLA_INFO_KIND": "veth"})},
        index=2, ifi_type=1, flags=1,
    )  # fmt: skip
    addresses = [
        message({"IFA_ADDRESS": "10.1.0.2", "IFA_LOCAL": "10.1.0.2"}, family=2, prefixlen=24, index=2, flags=128),
        message({"IFA_ADDRESS": "fd01::2"}, family=10, prefixlen=64, index=2, flags=128),
        message({"IFA_ADDRESS": "fd01::abcd"}, family=10, prefixlen=64, index=2, flags=1),  # temporary
        message({"IFA_ADDRESS": "127.0.0.1", "IFA_LOCAL": "127.0.0.1"}, family=2, prefixlen=8, index=1, flags=128),
    ]
    assert interfaces([link], addresses) == (ETH0,)


def test_a_point_to_point_address_is_our_end() -> None:
    link = message({"IFLA_IFNAME": "eth0"}, index=2, ifi_type=1, flags=1)
    entry = message({"IFA_ADDRESS": "10.1.0.1", "IFA_LOCAL": "10.1.0.2"}, family=2, prefixlen=32, index=2, flags=128)
    assert interfaces([link], [entry])[0].addresses == (Address(2, "10.1.0.2", 32),)


def test_routes_of_the_main_table() -> None:
    dropped: list[str] = []
    found = routes(
        [
            route(RTA_GATEWAY="10.1.0.1", RTA_PRIORITY=50, flags=4 | 16),
            route("10.1.0.0/24", RTA_PREFSRC="10.1.0.2", scope=253, proto=2),
            route("10.5.0.0/16", table=100),
            route("fe80::/64", family=10),
            route("10.6.0.0/16", type=7),  # unreachable
            message({"RTA_MULTIPATH": []}, family=2, dst_len=0, table=254, type=1, scope=0, flags=0, proto=3),
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
    def entry(state: int, mac: str = "0a:00:00:00:00:01") -> dict[str, Any]:
        return message({"NDA_DST": "10.1.0.9", "NDA_LLADDR": mac}, family=2, ifindex=2, state=state, flags=0)

    assert neighbours([entry(0x80), entry(0x02), entry(0x80, "")]) == (
        Neighbour(2, 2, "10.1.0.9", "0a:00:00:00:00:01"),
    )


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
