"""Calls about the guest, by an agent on this machine: what they tell and refuse. None changes the machine."""

import asyncio
import json
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_agent.guest import files
from kata_agent.services.elsewhere import ELSEWHERE
from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_runtime.guest.call import make_call
from support.agent import AgentClient, agent_client

pytestmark = pytest.mark.slow


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentClient]:
    async with agent_client(tmp_path, real=False) as client:
        await client.create_sandbox()
        yield client


async def refused(call: AsyncIterator[object] | object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


async def test_interfaces_and_routes(agent: AgentClient) -> None:
    listed = await agent.rpc.ListInterfaces(pb.ListInterfacesRequest())
    found = {entry.name: entry for entry in listed.Interfaces}
    assert set(found) == {path.name for path in Path("/sys/class/net").iterdir()}
    loopback = [(a.family, a.address, a.mask) for a in found["lo"].IPAddresses]
    assert (pb.IPFamily.v4, "127.0.0.1", "8") in loopback
    for name, entry in found.items():
        assert entry.mtu == int(Path(f"/sys/class/net/{name}/mtu").read_text())
        assert (entry.hwAddr or "00:00:00:00:00:00") == Path(f"/sys/class/net/{name}/address").read_text().strip()
    routes = (await agent.rpc.ListRoutes(pb.ListRoutesRequest())).Routes
    # The kernel's own list, in hexadecimal.
    kernel = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    v4 = [route for route in routes if route.family == pb.IPFamily.v4]
    assert sorted(route.device for route in v4) == sorted(words[0] for words in kernel)
    for words in kernel:
        if words[1] == "00000000":
            gateway = ".".join(str(byte) for byte in bytes.fromhex(words[2])[::-1])
            assert ("", gateway, words[0]) in [(r.dest, r.gateway, r.device) for r in v4]


PROGRAM = """#!/bin/sh
echo "$@" >>{log}
case $1 in
*save) echo '*nat' ;;
*) cat; grep -q good {log}.want || {{ echo 'line 1 failed' >&2; exit 2; }} ;;
esac
"""


async def test_iptables(agent: AgentClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the program: this machine keeps its own rules."""
    log, want = tmp_path / "log", tmp_path / "log.want"
    for kind in ("nft", "legacy"):
        program = tmp_path / "bin" / f"xtables-{kind}-multi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(PROGRAM.format(log=log))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert (await agent.rpc.GetIPTables(pb.GetIPTablesRequest(is_ipv6=True))).data == b"*nat\n"
    want.write_text("good")
    answer = await agent.rpc.SetIPTables(pb.SetIPTablesRequest(data=b"*filter\nCOMMIT\n"))
    assert answer.data == b"*filter\nCOMMIT\n"
    want.write_text("bad")
    code, words = await refused(agent.rpc.SetIPTables(pb.SetIPTablesRequest(data=b"nonsense")))
    assert (code, "line 1 failed" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert log.read_text().splitlines() == ["ip6tables-save", *["iptables-restore --wait 5"] * 2]
    monkeypatch.setenv("PATH", str(tmp_path))
    code, words = await refused(agent.rpc.GetIPTables(pb.GetIPTablesRequest()))
    assert "is it in the image?" in words


async def test_metrics(agent: AgentClient) -> None:
    text = (await agent.rpc.GetMetrics(pb.GetMetricsRequest())).metrics
    lines = text.splitlines()
    total = next(line for line in lines if line.startswith('kata_guest_meminfo{item="memtotal"} '))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert float(total.split()[1]) == pytest.approx(machine, rel=0.02)
    for name in ("kata_agent_total_rss", "kata_guest_load", "kata_guest_cpu_time", "kata_guest_vm_stat"):
        assert f"# TYPE {name} gauge" in lines


async def test_files(agent: AgentClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    monkeypatch.setattr(files, "BASE", str(base))

    async def copy(name: str, **fields: Any) -> None:
        await agent.rpc.CopyFile(pb.CopyFileRequest(path=f"{base}/{name}", uid=os.getuid(), gid=os.getgid(), **fields))

    data = bytes(range(256)) * 8192
    half = len(data) // 2
    await copy("a/b/file", file_size=len(data), file_mode=0o640, dir_mode=0o750, data=data[:half])
    assert not (base / "a/b/file").exists()
    await copy("a/b/file", file_size=len(data), file_mode=0o640, dir_mode=0o750, offset=half, data=data[half:])
    assert (base / "a/b/file").read_bytes() == data
    assert stat.S_IMODE((base / "a/b/file").stat().st_mode) == 0o640
    assert stat.S_IMODE((base / "a").stat().st_mode) & 0o700 == 0o700
    await copy("a/link", file_mode=stat.S_IFLNK | 0o777, data=b"../nowhere")
    assert (base / "a/link").readlink() == Path("../nowhere")
    await copy("a/b", file_mode=stat.S_IFDIR | 0o2755)
    assert stat.S_IMODE((base / "a/b").stat().st_mode) == 0o2755
    assert (base / "a/b/file").exists()
    await copy("a/link", file_size=0, file_mode=0o600)
    assert (base / "a/link").is_file()
    # Nothing of it leads out of the directory.
    (base / "out").symlink_to(tmp_path)
    for name in ("out/x", "../x", "a/../../x", ""):
        code, _ = await refused(copy(name, file_size=0))
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    assert not (tmp_path / "x").exists()
    for wrong in ({"file_size": 1, "data": b"xx"}, {"file_size": 3, "offset": -1, "data": b"x"}, {"file_size": -1}):
        assert (await refused(copy("w", **wrong)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(copy("dev", file_mode=stat.S_IFCHR)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_can_be_no_swap(agent: AgentClient, tmp_path: Path) -> None:
    file = tmp_path / "swap"
    file.write_bytes(bytes(1 << 20))
    code, words = await refused(agent.rpc.AddSwapPath(pb.AddSwapPathRequest(path=str(file))))
    assert (code, "no swap signature" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert (await refused(agent.rpc.AddSwapPath(pb.AddSwapPathRequest(path="relative"))))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    for path in ([], [32], [1] * 9):
        assert (await refused(agent.rpc.AddSwap(pb.AddSwapRequest(PCIPath=path))))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
    assert (await refused(agent.rpc.AddSwap(pb.AddSwapRequest(PCIPath=[30, 30]))))[0] is grpc.StatusCode.NOT_FOUND


async def test_memory_that_is_not_there(agent: AgentClient) -> None:
    storage = pb.Storage(driver="ephemeral", mount_point="/run", options=["size=1M"])
    request = pb.UpdateEphemeralMountsRequest(storages=[storage])
    assert (await refused(agent.rpc.UpdateEphemeralMounts(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_termination_message(agent: AgentClient, tmp_path: Path) -> None:
    log = tmp_path / "message"
    log.write_text("x" * 5000 + "because")
    spec = json.loads(agent.spec("sleep", "100"))
    spec["mounts"].append({"destination": "/dev/termination-log", "type": "bind", "source": str(log)})
    await agent.rpc.CreateContainer(pb.CreateContainerRequest(container_id="c1", oci=json.dumps(spec).encode()))
    asked = pb.GetDiagnosticDataRequest(log_type="termination_log", container_id="c1")
    said = (await agent.rpc.GetDiagnosticData(asked)).data
    assert (len(said), said[-8:]) == (4096, "xbecause")
    asked.log_type = "all"
    assert (await refused(agent.rpc.GetDiagnosticData(asked)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    await agent.remove("c1")


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
async def test_calls_that_mean_nothing_here_say_why(agent: AgentClient, name: str) -> None:
    stream = await agent.dial(Port.CALLS)
    code, text = await make_call(stream.socket, name, (), b"\x0a\x03abc")
    assert (code, text) == (grpc.StatusCode.UNIMPLEMENTED.value[0], b"\0" + ELSEWHERE[name].encode())
    async with grpc.aio.insecure_channel(f"unix:{agent.endpoints.path(Port.AGENT)}") as channel:
        call: Any = channel.unary_unary(f"/grpc.AgentService/{name}")
        assert await refused(call(b"")) == (grpc.StatusCode.UNIMPLEMENTED, ELSEWHERE[name])


POLICY = {
    "default": "allow",
    "rules": [
        {"allow": ["ExecProcess"], "where": {"process.args.0": ["/bin/date"], "process.user.uid": [0]}},
        {"deny": ["ExecProcess", "*IPTables"]},
        {"deny": ["CreateContainer"], "where": {"oci.process.args.0": ["sleep"], "container_id": ["c1", "c2"]}},
        {"deny": ["CreateSandbox"], "where": {"storages.0.driver": ["bind"]}},
        {"deny": ["StreamSpans", "SetPolicy"]},
    ],
}


async def test_a_policy(agent: AgentClient) -> None:
    await agent.rpc.SetPolicy(pb.SetPolicyRequest(policy=json.dumps(POLICY)))

    def executed(*args: str, uid: int = 0) -> object:
        process = json.dumps({"args": args, "user": {"uid": uid, "gid": 0}}).encode()
        return agent.rpc.ExecProcess(pb.ExecProcessRequest(container_id="c1", exec_id="e1", process=process))

    # Allowed, it gets as far as to a container that is not there.
    assert (await refused(executed("/bin/date")))[0] is grpc.StatusCode.NOT_FOUND
    denied = (grpc.StatusCode.PERMISSION_DENIED, "ExecProcess is denied by rule 2 of the sandbox's policy")
    assert await refused(executed("/bin/date", uid=1)) == denied
    assert await refused(executed("/bin/sh")) == denied
    assert (await refused(agent.rpc.GetIPTables(pb.GetIPTablesRequest())))[0] is denied[0]
    assert (await refused(agent.create("c1", "sleep", "9")))[0] is denied[0]
    await agent.create("c3", "sleep", "9")
    await agent.remove("c3")
    storage = pb.Storage(driver="bind", source="/", mount_point="/x")
    request = pb.CreateSandboxRequest(sandbox_id="s2", storages=[storage])
    assert (await refused(agent.rpc.CreateSandbox(request)))[0] is denied[0]
    assert (await refused(agent.rpc.SetPolicy(pb.SetPolicyRequest(policy="{}"))))[0] is denied[0]
    # The way without gRPC is the same.
    stream = await agent.dial(Port.CALLS)
    code, _ = await make_call(stream.socket, "GetIPTables", (), b"")
    assert code == denied[0].value[0]
    with pytest.raises(grpc.aio.AioRpcError, match="StreamSpans is denied"):
        async for _ in agent.rpc.StreamSpans(pb.StreamSpansRequest()):
            pass
    await agent.health.Check(pb.CheckRequest())


async def test_nothing_is_allowed_by_default(agent: AgentClient) -> None:
    policy = {"default": "deny", "rules": [{"allow": ["ListInterfaces", "ForgetSandbox"]}]}
    await agent.rpc.SetPolicy(pb.SetPolicyRequest(policy=json.dumps(policy)))
    await agent.rpc.ListInterfaces(pb.ListInterfacesRequest())
    code, words = await refused(agent.rpc.ListRoutes(pb.ListRoutesRequest()))
    assert (code, words) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "ListRoutes is denied: no rule of the sandbox's policy allows it",
    )
    # A template's clones have none.
    await agent.rpc.ForgetSandbox(pb.ForgetSandboxRequest())
    await agent.rpc.ListRoutes(pb.ListRoutesRequest())


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("package agent_policy\ndefault AllowRequestsFailingPolicy := true", "Rego"),
        ("allow all", "not JSON"),
        ("[]", "malformed"),
        ('{"default": "maybe"}', "malformed"),
        ('{"rules": [{"deny": ["Exec"]}]}', "no call 'Exec'"),
        ('{"rules": [{"deny": [1]}]}', "no call '1'"),
        ('{"rules": [{"deny": ["*"], "allow": ["*"]}]}', "rule 1"),
        ('{"rules": [{"deny": ["*"], "when": {}}]}', "rule 1"),
        ('{"rules": [{"deny": ["*"], "where": {"container_id": "c1"}}]}', "rule 1"),
        ("[" * 100_000, "not JSON"),
    ],
)
async def test_a_policy_that_is_none(agent: AgentClient, policy: str, words: str) -> None:
    code, said = await refused(agent.rpc.SetPolicy(pb.SetPolicyRequest(policy=policy)))
    assert (code, words in said) == (grpc.StatusCode.INVALID_ARGUMENT, True), said
    # The old one, none, still holds.
    await agent.rpc.ListInterfaces(pb.ListInterfacesRequest())


def _listens(agent: AgentClient) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(agent.endpoints.path(Port.CONSOLE))) == 0


async def test_the_console(tmp_path: Path) -> None:
    async with agent_client(tmp_path, real=False) as agent:
        assert not agent.endpoints.path(Port.CONSOLE).exists()
        await agent.rpc.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="s1", debug_console=True))
        async with asyncio.timeout(20):
            shell = await agent.dial(Port.CONSOLE)
            await shell.send(b"tty; echo $((6*7)); exit\n")
            said = await shell.read_all()
            assert b"/dev/pts/" in said
            assert b"\n42\r\n" in said
            # Another one that is cut off, with what runs in it.
            second = await agent.dial(Port.CONSOLE)
            await second.send(b"echo pid=$$'$'; exec sleep 1000\n")
            said = await second.read_until(b"$\r\n")
            pid = int(re.findall(rb"pid=(\d+)\$", said)[0])
            pidfd = os.pidfd_open(pid)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, ended.set)
            await agent.rpc.ForgetSandbox(pb.ForgetSandboxRequest())
            await ended.wait()
            assert not _listens(agent)
            # What the kernel's command line says holds for every sandbox of this guest.
            assert agent.agent is not None
            agent.agent.open_console(Port.CONSOLE)
            await agent.create_sandbox()
            await agent.rpc.ForgetSandbox(pb.ForgetSandboxRequest())
            assert _listens(agent)
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
