"""What a guest says, and what its agent is told: clocks, logs, counters, calls, specifications, networks."""

import json
import socket
from collections.abc import Callable
from contextlib import suppress

from kata_agent.container import limits, placement, spec
from kata_agent.errors import AgentError as GuestError
from kata_agent.errors import InvalidError
from kata_agent.guest import network, rtnetlink
from kata_common import netlink
from kata_common.contract import CALL_REPLY, CLOCK_ANSWER
from kata_protos import agent_pb2 as pb
from kata_runtime.errors import AgentError, SandboxError
from kata_runtime.guest import agent_log, call, clock
from kata_runtime.helper_log import Lines, readable
from kata_runtime.sandbox.network import rtnetlink as host_rtnetlink
from kata_runtime.sandbox.network.model import Scan, to_arp_neighbors, to_interface, to_routes
from kata_runtime.shim.metrics import add_metrics, to_metrics
from kata_telemetry.clock import HostClock
from kata_telemetry.span import NO_SPAN
from support.fuzz.loop import run, talked
from support.fuzz.target import Shape, Target, text_of

__all__ = ["TARGETS"]


class _Answering:
    """A guest whose clock port says `data`, and then no more."""

    grpc_address = kata_address = ""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def connect(self, port: int) -> tuple[socket.socket, int]:
        return talked(self._data), 7


def _clock(data: bytes) -> None:
    reading = run(clock.measure(_Answering(data), HostClock(), patience=0))
    assert reading.bound_ns >= 0


def _call(data: bytes) -> None:
    with talked(data) as stream:
        code, body = run(call.make_call(stream, "Check", [], b""))
    assert 0 <= code <= 255
    assert len(body) <= len(data)


def _metrics(data: bytes) -> None:
    """Files are `NAME<NUL>CONTENT` in turn."""
    words = data.decode("utf-8", "replace").split("\0")
    files = dict(zip(words[::2], words[1::2], strict=False))
    total = to_metrics(files, [pb.NetworkStats(name=name[:30], rx_bytes=1) for name in words[:70]])
    add_metrics(total, to_metrics(files))
    total.SerializeToString()


def _console(data: bytes) -> None:
    lines = Lines()
    for at in range(0, len(data), 1000):
        for line in lines.feed(data[at : at + 1000]):
            shown = readable(line)
            assert shown.isprintable()
            assert len(line) <= 1024
            agent_log.parse(shown)
    agent_log.AgentLog("s", NO_SPAN).line(data.decode("utf-8", "replace")[:1024])


def _spec(data: bytes) -> None:
    """As `Container.create` takes one apart, up to what needs a guest."""
    made = spec.parse(data, "it")
    spec.network_sysctls(made)
    made = spec.guest_spec(made, cgroup="/c", shared={"ipc": "/ipc", "uts": "/uts"})
    limits.fit_resources(spec.resources_of(made), _GUEST)
    placement.take_placement(made["process"], _GUEST.cpus)
    json.dumps(made)


def _exec(data: bytes) -> None:
    process = spec.process_of(spec.parse(data, "process"), "process")
    placement.take_placement(process, _GUEST.cpus)
    assert process["args"]


def _resources(data: bytes) -> None:
    resources = spec.parse(data, "resources")
    limits.fit_resources(resources, _GUEST)


def _addresses(data: bytes) -> None:
    """What the agent is told of interfaces, as far as no device is needed for it."""
    for word in data.decode("utf-8", "replace").split("\0")[:64]:
        for family in (socket.AF_INET, socket.AF_INET6):
            for work in (lambda w, f: network._split(f, w), lambda w, f: rtnetlink.packed(f, w)):
                _refused(lambda: work(word, family), InvalidError)  # noqa: B023 - called at once
        _refused(lambda: rtnetlink.packed_mac(word), InvalidError)  # noqa: B023
        _refused(lambda: limits.parse_cpus(word, "it"), InvalidError)  # noqa: B023


def _refused(work: Callable[[], object], allowed: type[Exception]) -> None:
    with suppress(allowed):
        work()


def _netlink(data: bytes) -> None:
    """Messages of a kernel, without their header: links, addresses, routes, neighbours in turn, 0xfe thrice between."""
    bodies = data.split(b"\xfe\xfe\xfe")
    for body in bodies:
        for kind, value in netlink.attributes(body).items():
            assert 0 <= kind <= 0x3FFF
            netlink.text(value), netlink.number(value)
    dropped: list[str] = []
    links, addresses, routes, neighbours = (
        [body for body in bodies[number::4] if len(body) >= layout.size]
        for number, layout in enumerate((netlink.LINK, netlink.ADDRESS, netlink.ROUTE, netlink.NEIGHBOUR))
    )
    scan = Scan(
        host_rtnetlink.interfaces(links, addresses),
        host_rtnetlink.routes(routes, dropped),
        host_rtnetlink.neighbours(neighbours),
    )
    names = {entry.index: entry.name for entry in scan.endpoints()}
    for entry in scan.interfaces:
        to_interface(entry)
    to_routes(scan.routes, names), to_arp_neighbors(scan.neighbours, names)


def _link(index: int, name: str) -> bytes:
    attributes = netlink.attribute(netlink.IFLA_IFNAME, name) + netlink.attribute(netlink.IFLA_ADDRESS, b"\2\0\0\0\0\1")
    attributes += netlink.nested(netlink.IFLA_LINKINFO, netlink.attribute(netlink.IFLA_INFO_KIND, "veth"))
    return netlink.LINK.pack(0, 1, index, 1, 0) + netlink.attribute(netlink.IFLA_MTU, 1500) + attributes


def _messages() -> bytes:
    address = netlink.ADDRESS.pack(2, 24, 0, 0, 3) + netlink.attribute(netlink.IFA_LOCAL, b"\x0a\0\0\1")
    route = netlink.ROUTE.pack(2, 8, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(netlink.RTA_OIF, 3)
    route += netlink.attribute(netlink.RTA_DST, b"\x0a\0\0\0") + netlink.attribute(netlink.RTA_GATEWAY, b"\x0a\0\0\2")
    neighbour = netlink.NEIGHBOUR.pack(2, 3, 0x80, 0, 0) + netlink.attribute(netlink.NDA_DST, b"\x0a\0\0\2")
    neighbour += netlink.attribute(netlink.NDA_LLADDR, b"\2\0\0\0\0\2")
    return b"\xfe\xfe\xfe".join((_link(3, "eth0"), address, route, neighbour))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


_GUEST = limits.Guest(frozenset({0, 1}), frozenset({"2MB"}))
_CLOCK = b"".join(CLOCK_ANSWER.pack(number.to_bytes(8), 10**9 + number, 10**18) for number in range(12))
_FILES = {
    "cpu.stat": "usage_usec 12\nuser_usec 1\nnr_periods 3\n",
    "cpu.pressure": "some avg10=0.10 avg60=0.00 avg300=0.00 total=7\nfull avg10=1.5 total=9\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.stat": "anon 1\nfile 2\n",
    "memory.events": "oom 1\noom_kill 2\n",
    "pids.max": "max\n",
    "io.stat": "253:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n",
    "hugetlb.2MB.current": "0\n",
}
_LOG = 'time=2026-11-27T20:00:00Z level=info source=agent msg="it \\"says\\"" container=c trace_id=1 span_id=2\n'
_AGENT = {
    "process": {
        "args": ["sh"],
        "cwd": "/",
        "scheduler": {"policy": "SCHED_BATCH", "nice": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"], "runtime": 1},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    },
    "root": {"path": "/run/r"},
    "hostname": "h",
    "linux": {
        "namespaces": [{"type": "ipc"}, {"type": "uts", "path": ""}, {"type": "network"}],
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.x": "2"},
        "resources": {
            "cpu": {"cpus": "0-3"},
            "unified": {"cpuset.cpus": "0"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 0}],
        },
    },
}  # fmt: skip
_ANSWERS = (CALL_REPLY.pack(3, 0) + b"abc", CALL_REPLY.pack(6, 5) + b"\0nobody"[:6])
TARGETS = (
    Target("clock", "guest.clock.measure", _clock, (_CLOCK,), (AgentError,)),
    Target("agent-answer", "guest.call.make_call", _call, _ANSWERS, (AgentError,)),
    Target(
        "metrics",
        "shim.metrics.to_metrics",
        _metrics,
        ("\0".join(f"{k}\0{v}" for k, v in _FILES.items()).encode(),),
        (),
        Shape.TEXT,
        text_of(("max", "avg10=", "total=", "some ", "²", "\0")),
    ),
    Target(
        "console",
        "helper_log, guest.agent_log",
        _console,
        (_LOG.encode(), b"\x1b[2J\x1b[31mBIOS\r\n[    0.1] Linux\n"),
        (),
        Shape.TEXT,
        text_of(("time=", 'x="', "\\", " a=b", "\x1b[", "\x9b")),
    ),
    Target(
        "agent-spec",
        "kata_agent.container: spec, limits, placement",
        _spec,
        (_json(_AGENT),),
        (GuestError,),
        Shape.JSON,
    ),
    Target(
        "agent-exec",
        "kata_agent.container.spec.process_of",
        _exec,
        (_json(_AGENT["process"]),),
        (GuestError,),
        Shape.JSON,
    ),
    Target(
        "agent-resources",
        "kata_agent.container.limits.fit_resources",
        _resources,
        (
            _json(
                {
                    "cpu": {"cpus": "0"},
                    "unified": {"cpuset.cpus": "0-9"},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
                }
            ),
        ),
        (GuestError,),
        Shape.JSON,
    ),
    Target(
        "addresses",
        "kata_agent.guest.network, rtnetlink; limits",
        _addresses,
        text_of(("10.0.0.0/8\0fe80::1/64\00002:00:00:00:00:01\0000-3,6", "\0")),
        (),
        Shape.TEXT,
        text_of(("/33", "::", ":", "-", ",", "²", "0x", "_1")),
    ),
    Target(
        "rtnetlink",
        "kata_common.netlink, sandbox.network.rtnetlink",
        _netlink,
        (_messages(),),
        (SandboxError,),
        words=(b"\xfe\xfe\xfe", b"\4\0\1\0", b"\3\0\1\0", b"\xff\xff\1\0"),
    ),
)
