"""The agent as the runtime sees it: server and client in one process, over unix sockets, with the real crun where
root is.
"""

import asyncio
import hashlib
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_common.contract import Port
from kata_protos import agent_pb2 as pb
from kata_runtime.guest.call import make_call, request_of
from support.agent import AgentClient, agent_client, real_crun_reason

pytestmark = pytest.mark.slow  # processes, many of them
REAL = pytest.mark.skipif(bool(real_crun_reason()), reason=real_crun_reason() or "real crun")


@pytest.fixture(params=["fake", pytest.param("real", marks=REAL)])
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AgentClient]:
    async with agent_client(tmp_path, real=request.param == "real") as client:
        yield client


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[AgentClient]:
    if reason := real_crun_reason():
        pytest.skip(reason)
    async with agent_client(tmp_path, real=True) as client:
        await client.create_sandbox()
        yield client


def code_of(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> grpc.StatusCode:
    return error.value.code()


def marker_of(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> str:
    found = dict(error.value.trailing_metadata() or ())
    return str(found.get("kata-error", ""))


async def test_output_and_exit_status(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdout, stderr = await agent.stdio(), await agent.stdio()
    await agent.run("c1", "sh", "-c", "echo out; echo err >&2; exit 7", stdout=stdout, stderr=stderr)
    assert (await agent.wait("c1")).status == 7
    assert await stdout.read_all() == b"out\n"
    assert await stderr.read_all() == b"err\n"
    await agent.remove("c1")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.wait("c1")
    assert code_of(error) is grpc.StatusCode.NOT_FOUND


async def test_nothing_runs_before_start(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdout = await agent.stdio()
    await agent.create("c1", "echo", "ran", stdout=stdout)
    waiting = asyncio.create_task(agent.wait("c1"))
    await agent.health.Check(pb.CheckRequest())
    assert not waiting.done()
    await agent.start("c1")
    assert (await waiting).status == 0
    assert await stdout.read_all() == b"ran\n"
    await agent.remove("c1")


async def test_stdin_to_its_end(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdin, stdout = await agent.stdio(), await agent.stdio()
    await agent.run("c1", "cat", stdin=stdin, stdout=stdout)
    data = bytes(range(256)) * 8192

    async def feed() -> None:
        await stdin.send(data)
        stdin.half_close()

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        echoed = group.create_task(stdout.read_all())
    assert hashlib.sha256(echoed.result()).digest() == hashlib.sha256(data).digest()
    assert (await agent.wait("c1")).status == 0
    await agent.remove("c1")


async def test_burst_then_exit_loses_nothing(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdout = await agent.stdio()
    await agent.run("c1", "dd", "if=/dev/zero", "bs=1048576", "count=8", stdout=stdout)
    # Nobody reads until the process would long be gone if pipe and stream could hold it all.
    await agent.health.Check(pb.CheckRequest())
    assert len(await stdout.read_all()) == 8 << 20
    assert (await agent.wait("c1")).status == 0
    await agent.remove("c1")


async def test_output_is_complete_when_read_after_the_end(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdout = await agent.stdio()
    await agent.run("c1", "dd", "if=/dev/zero", "bs=102400", "count=8", stdout=stdout)
    assert (await agent.wait("c1")).status == 0
    assert len(await stdout.read_all()) == 8 * 102400
    await agent.remove("c1")


async def test_death_by_signal(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    waiters = [asyncio.create_task(agent.wait("c1")) for _ in range(5)]
    await agent.signal("c1", 9)
    for waiter in waiters:
        reply = await waiter
        assert reply.status == 137
        assert not reply.oom_killed
        assert abs(reply.exited_at_ns - time.time_ns()) < 5_000_000_000
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.signal("c1", 9)
    assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
    await agent.remove("c1")


async def test_exec(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    stdin, stdout, stderr = await agent.stdio(), await agent.stdio(), await agent.stdio()
    script = "read line; echo got $line; echo oops >&2; exit 42"
    await agent.exec("c1", "e1", "sh", "-c", script, stdin=stdin, stdout=stdout, stderr=stderr)
    await stdin.send(b"this\n")
    assert await stdout.read_all() == b"got this\n"
    assert await stderr.read_all() == b"oops\n"
    assert (await agent.wait("c1", "e1")).status == 42
    await agent.exec("c1", "e2", "sleep", "100")
    await agent.signal("c1", 15, "e2")
    assert (await agent.wait("c1", "e2")).status == 143
    await agent.remove("c1")


async def test_exec_ids(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    await agent.exec("c1", "e1", "sleep", "100")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.exec("c1", "e1", "true")
    assert code_of(error) is grpc.StatusCode.ALREADY_EXISTS
    await agent.signal("c1", 9, "e1")
    assert (await agent.wait("c1", "e1")).status == 137
    await agent.exec("c1", "e1", "sh", "-c", "exit 3")
    assert (await agent.wait("c1", "e1")).status == 3
    await agent.remove("c1")


async def test_terminal(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdin, stdout = await agent.stdio(), await agent.stdio()
    await agent.run("c1", "sh", "-c", "read x; stty size; exit 5", stdin=stdin, stdout=stdout, terminal=True)
    await agent.rpc.TtyWinResize(pb.TtyWinResizeRequest(container_id="c1", row=33, column=77))
    await stdin.send(b"\n")
    assert b"33 77" in await stdout.read_all()
    assert (await agent.wait("c1")).status == 5
    await agent.remove("c1")


async def test_terminal_of_exec_ends_with_input(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    stdin, stdout = await agent.stdio(), await agent.stdio()
    await agent.exec("c1", "e1", "cat", stdin=stdin, stdout=stdout, terminal=True)
    await stdin.send(b"hello\n")
    await stdout.read_until(b"hello\r\nhello\r\n")
    stdin.half_close()
    await stdout.read_all()
    assert (await agent.wait("c1", "e1")).status == 0
    await agent.remove("c1")


async def test_close_stdin(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdin, stdout = await agent.stdio(), await agent.stdio()
    await agent.run("c1", "cat", stdin=stdin, stdout=stdout)
    await stdin.send(b"abc")
    await stdout.read_until(b"abc")
    await agent.rpc.CloseStdin(pb.CloseStdinRequest(container_id="c1"))
    assert await stdout.read_all() == b""
    assert (await agent.wait("c1")).status == 0
    await agent.remove("c1")


async def test_orphan_that_keeps_stdout_does_not_hang_the_stream(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    stdout = await agent.stdio()
    await agent.exec("c1", "e1", "sh", "-c", "echo first; sleep 50 & exit 0", stdout=stdout)
    assert (await agent.wait("c1", "e1")).status == 0
    began = time.monotonic()
    assert await stdout.read_all() == b"first\n"
    assert time.monotonic() - began < 4
    await agent.remove("c1")


@pytest.mark.parametrize(
    ("command", "status", "marker"),
    [("nosuch", grpc.StatusCode.NOT_FOUND, "command-not-found"),
     ("/no/such", grpc.StatusCode.NOT_FOUND, "command-not-found"),
     ("/etc/passwd", grpc.StatusCode.FAILED_PRECONDITION, "command-not-executable"),
     ("/bin", grpc.StatusCode.FAILED_PRECONDITION, "command-not-executable")],
)  # fmt: skip
async def test_commands_that_cannot_run(agent: AgentClient, command: str, status: grpc.StatusCode, marker: str) -> None:
    await agent.create_sandbox()
    if agent.root:
        (agent.root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    stderr = await agent.stdio()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.create("c1", command, stderr=stderr)
    assert (code_of(error), marker_of(error)) == (status, marker)
    assert await stderr.read_all() == b""
    # The id is free again, and the same holds for exec.
    await agent.run("c1", "sleep", "100")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.exec("c1", "e1", command)
    assert (code_of(error), marker_of(error)) == (status, marker)
    await agent.remove("c1")


@pytest.mark.parametrize(("command", "status"), [("garbage", 126), ("orphan", 127)])
async def test_commands_that_fail_at_execve(real: AgentClient, command: str, status: int) -> None:
    await real.run("c1", command)
    assert (await real.wait("c1")).status == status
    await real.run("c2", "sleep", "100")
    await real.exec("c2", "e1", f"/bin/{command}")
    assert (await real.wait("c2", "e1")).status == status
    await real.remove("c1")
    await real.remove("c2")


async def test_a_status_is_never_guessed_from_what_a_process_says(agent: AgentClient) -> None:
    """crun says the same words where execve(2) fails."""
    await agent.create_sandbox()
    for number, words in enumerate(("exec: no command", "exec: No such file or directory")):
        script = f"echo '{words}' >&2; exit 1"
        await agent.run(f"c{number}", "sh", "-c", script)
        assert (await agent.wait(f"c{number}")).status == 1
        await agent.remove(f"c{number}")
    await agent.run("c", "sleep", "100")
    for status in (1, 255):
        await agent.exec("c", f"e{status}", "sh", "-c", f"echo 'exec: no command' >&2; exit {status}")
        assert (await agent.wait("c", f"e{status}")).status == status
    await agent.remove("c")


async def test_signals_to_a_first_process_without_handlers(real: AgentClient) -> None:
    """As under runc they do nothing; SIGTERM ends it, as with Kata, and others where they are meant to."""
    await real.run("c", "sleep", "100")
    for number in (1, 2, 3):
        await real.signal("c", number)
        await real.signal("c", number, all=True)
    await real.exec("c", "e", "true")
    assert (await real.wait("c", "e")).status == 0
    await real.signal("c", 2, all=True, ending=True)
    assert (await real.wait("c")).status == 130
    await real.remove("c")


async def test_a_process_ignores_no_signal_of_the_c_librarys(real: AgentClient) -> None:
    """glibc's posix_spawn has its child ignore 32 and 33. (Signal 3 is ignored by the shell of tests' crun.)"""
    stdout = await real.stdio()
    await real.run("c", "sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status", stdout=stdout)
    _, blocked, _, ignored = (await stdout.read_all()).split()
    assert (int(blocked, 16), int(ignored, 16) & ~(1 << 2)) == (0, 0)
    await real.wait("c")
    await real.remove("c")


async def test_where_and_how_soon_processes_run(real: AgentClient) -> None:
    """A container's own process, and what is exec'd into it, which has the container's CPUs unless it says others."""
    asked: dict[str, Any] = {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 4},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    }
    # Policy and nice value (proc(5), fields 41 and 19).
    script = "ionice -p $$; cut -d' ' -f19,41 /proc/self/stat; grep Cpus_allowed_list /proc/self/status"
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    stdout = await real.stdio()
    await real.run("c", "sh", "-c", f"{script}; exec sleep 100", stdout=stdout, execCPUAffinity={"final": "0"}, **asked)
    said = await stdout.read_until(b"Cpus_allowed_list")
    assert said.startswith(b"best-effort: prio 6\n4 3\n")
    own: dict[str, Any] = {"execCPUAffinity": {"initial": every, "final": "1"}}
    nothing: dict[str, Any] = {}
    for number, (extra, cpus) in enumerate([(nothing, "0"), (own, "1")]):
        stdin, stdout = await real.stdio(), await real.stdio()
        # It looks when the call is over: until then crun may be moving it.
        await real.exec(
            "c", f"e{number}", "sh", "-c", f"read x; {script}", stdin=stdin, stdout=stdout, **asked, **extra
        )
        await stdin.send(b"\n")
        lines = (await stdout.read_all()).decode().splitlines()
        assert lines[:2] == ["best-effort: prio 6", "4 3"]
        assert lines[2].split()[1] == cpus
    stdout = await real.stdio()
    await real.exec("c", "plain", "sh", "-c", script, stdout=stdout)  # the agent itself has kept its own
    assert b"\n0 0\n" in await stdout.read_all()
    await real.remove("c")


async def test_an_environment_of_a_megabyte(real: AgentClient) -> None:
    stdout = await real.stdio()
    env = ["PATH=/bin", *(f"V{number}={'x' * 100_000}" for number in range(12))]
    await real.run("c", "sh", "-c", "env | wc -c", stdout=stdout, env=env)
    assert int(await stdout.read_all()) > 1_200_000
    await real.remove("c")


async def test_bad_requests(agent: AgentClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.create("c1", "true")
    assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION  # no sandbox yet
    await agent.create_sandbox()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.create_sandbox()
    assert code_of(error) is grpc.StatusCode.ALREADY_EXISTS
    for bad in ("", "../x", "a/b", ".hidden", "x" * 200, "a\n"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await agent.create(bad, "true")
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT, bad
    for oci in (b"{", b"[]", b"{}", b'{"process": {"args": []}}', b"[" * 100_000):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await agent.rpc.CreateContainer(pb.CreateContainerRequest(container_id="c1", oci=oci))
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT, oci[:10]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.start("c1")
    assert code_of(error) is grpc.StatusCode.NOT_FOUND
    await agent.run("c1", "sleep", "100")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.create("c1", "true")
    assert code_of(error) is grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.start("c1")
    assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
    for number in (0, 65, 1000):
        for everything in (False, True):
            with pytest.raises(
                grpc.aio.AioRpcError, match=f"there is no signal {number}: signals are 1 to 64"
            ) as error:
                await agent.signal("c1", number, all=everything)
            assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await agent.rpc.TtyWinResize(pb.TtyWinResizeRequest(container_id="c1", row=1, column=1))
    assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
    await agent.remove("c1")


async def test_a_deadline_undoes_a_create(real: AgentClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await real.rpc.CreateContainer(
            pb.CreateContainerRequest(container_id="c1", oci=real.spec("true"), stdio=pb.StdioPorts(stdout_port=99)),
            timeout=0.1,
        )
    assert code_of(error) is grpc.StatusCode.DEADLINE_EXCEEDED
    # The id is taken until the undoing is through; then it is free.
    async with asyncio.timeout(5):
        while await _taken(real, "c1"):
            pass
    await real.remove("c1")


async def test_containers_do_not_wait_for_each_other(agent: AgentClient) -> None:
    await agent.create_sandbox()
    unread = await agent.stdio()
    await agent.run("c1", "dd", "if=/dev/zero", "bs=1048576", "count=64", stdout=unread)
    for number in range(3):
        stdout = await agent.stdio()
        await agent.run(f"d{number}", "echo", "hi", stdout=stdout)
        assert await stdout.read_all() == b"hi\n"
        await agent.remove(f"d{number}")
    unread.close()
    assert (await agent.wait("c1")).status in {141, 1}
    await agent.remove("c1")


async def test_remove_kills_all(real: AgentClient) -> None:
    await real.run("c1", "sh", "-c", "sleep 1000 & sleep 1000 & trap '' TERM; wait; sleep 1000")
    await real.exec("c1", "e1", "sleep", "1000")
    waiting = [asyncio.create_task(real.wait("c1")), asyncio.create_task(real.wait("c1", "e1"))]
    pids = (await real.rpc.ListProcesses(pb.ListProcessesRequest(container_id="c1"))).pids
    assert len(pids) >= 2
    await real.remove("c1")
    assert [(await task).status for task in waiting] == [137, 137]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)  # noqa: PTH110


async def test_pause_and_resume(real: AgentClient) -> None:
    await real.run("c1", "sleep", "100")
    await real.rpc.PauseContainer(pb.PauseContainerRequest(container_id="c1"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await real.exec("c1", "e1", "true")
    assert code_of(error) is grpc.StatusCode.FAILED_PRECONDITION
    await real.rpc.ResumeContainer(pb.ResumeContainerRequest(container_id="c1"))
    await real.exec("c1", "e1", "true")
    assert (await real.wait("c1", "e1")).status == 0
    files = (await real.rpc.StatsContainer(pb.StatsContainerRequest(container_id="c1"))).files
    assert "usage_usec" in files["cpu.stat"]
    await real.rpc.PauseContainer(pb.PauseContainerRequest(container_id="c1"))
    await real.remove("c1")  # also frozen


async def test_hostname_is_the_sandboxs(real: AgentClient) -> None:
    stdout = await real.stdio()
    await real.run("c1", "hostname", stdout=stdout)
    assert await stdout.read_all() == b"guest\n"
    await real.remove("c1")


async def test_storages_and_dns(tmp_path: Path) -> None:
    if reason := real_crun_reason():
        pytest.skip(reason)
    async with agent_client(tmp_path, real=True) as agent:
        source, target, scratch = tmp_path / "source", tmp_path / "target", tmp_path / "scratch"
        source.mkdir()
        (source / "file").write_text("there")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await agent.create_sandbox(storages=[pb.Storage(driver="nvdimm", mount_point=str(target))])
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await agent.create_sandbox(storages=[pb.Storage(driver="bind", source="/a/../b", mount_point=str(target))])
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
        storages = [
            pb.Storage(driver="bind", source=str(source), mount_point=str(target), options=["ro"]),
            pb.Storage(driver="ephemeral", mount_point=str(scratch), options=["size=64k", "noexec"]),
            pb.Storage(driver="local", mount_point=str(tmp_path / "local"), options=["mode=0700"]),
        ]
        await agent.create_sandbox(storages=storages, dns=["nameserver 192.0.2.1"])
        assert (target / "file").read_text() == "there"
        with pytest.raises(OSError, match="Read-only"):
            (target / "other").write_text("")
        with pytest.raises(OSError, match="No space"):
            (scratch / "big").write_bytes(bytes(1 << 20))
        assert (tmp_path / "resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert not (target / "file").exists()


async def test_shared_pid_namespace(tmp_path: Path) -> None:
    if reason := real_crun_reason():
        pytest.skip(reason)
    async with agent_client(tmp_path, real=True) as agent:
        await agent.create_sandbox(sandbox_pidns=True)
        request = pb.CreateContainerRequest(container_id="c1", oci=agent.spec("sleep", "1234"), sandbox_pidns=True)
        await agent.rpc.CreateContainer(request)
        await agent.start("c1")
        stdout = await agent.stdio()
        await agent.rpc.CreateContainer(
            pb.CreateContainerRequest(
                container_id="c2",
                oci=agent.spec("ps"),
                sandbox_pidns=True,
                stdio=pb.StdioPorts(stdout_port=stdout.port),
            )
        )
        await agent.start("c2")
        assert b"sleep 1234" in await stdout.read_all()
        await agent.remove("c2")
        await agent.remove("c1")


async def test_pid_namespace_that_no_container_ends(tmp_path: Path) -> None:
    if reason := real_crun_reason():
        pytest.skip(reason)
    async with agent_client(tmp_path, real=True) as agent:
        await agent.create_sandbox(sandbox_pidns=True, pidns_holder=True)
        for name, command in (("c1", ("sleep", "1234")), ("c2", ("sleep", "5678"))):
            request = pb.CreateContainerRequest(container_id=name, oci=agent.spec(*command), sandbox_pidns=True)
            await agent.rpc.CreateContainer(request)
            await agent.start(name)
        await agent.remove("c1")
        stdout = await agent.stdio()
        request = pb.CreateContainerRequest(
            container_id="c3",
            oci=agent.spec("ps"),
            sandbox_pidns=True,
            stdio=pb.StdioPorts(stdout_port=stdout.port),
        )
        await agent.rpc.CreateContainer(request)
        await agent.start("c3")
        seen = await stdout.read_all()
        assert b"sleep 1234" not in seen
        assert b"sleep 5678" in seen
        assert any(line.split()[0] == b"1" and b"sleep 2147483647" in line for line in seen.splitlines()[1:]), seen


async def test_clock(agent: AgentClient) -> None:
    stream = await agent.clock()
    for _ in range(3):
        before = time.monotonic_ns()
        await stream.send(b"\0\1\2\3")
        await stream.send(b"\4\5\6\7")
        token, monotonic, realtime = struct.unpack(">8sqq", await stream.receive(24))
        assert token == bytes(range(8))
        assert before <= monotonic <= time.monotonic_ns()
        assert abs(realtime - time.time_ns()) < 1_000_000_000


async def test_destroy(agent: AgentClient) -> None:
    await agent.create_sandbox()
    stdout = await agent.stdio()
    await agent.run("c1", "sleep", "100", stdout=stdout)
    waiting = asyncio.create_task(agent.wait("c1"))
    polling = asyncio.create_task(_code(agent.rpc.GetOOMEvent(pb.GetOOMEventRequest())))
    await agent.health.Check(pb.CheckRequest())
    assert agent.agent
    gone = asyncio.create_task(agent.agent.destroyed())
    await agent.rpc.DestroySandbox(pb.DestroySandboxRequest())
    assert (await waiting).status == 137
    assert await polling is grpc.StatusCode.FAILED_PRECONDITION
    assert await stdout.read_all() == b""
    await gone


async def _taken(agent: AgentClient, container: str) -> bool:
    try:
        await agent.create(container, "true")
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:
            return True
        raise
    return False


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return code_of(error)


async def test_details_and_health(agent: AgentClient) -> None:
    details = await agent.rpc.GetGuestDetails(pb.GuestDetailsRequest())
    assert details.mem_total_bytes > 1 << 20
    assert details.cpus_online >= 1
    assert details.agent_details.python.startswith("3.")
    assert "virtio-fs" in details.agent_details.storage_handlers
    reply = await agent.health.Check(pb.CheckRequest())
    assert reply.status == pb.HealthCheckResponse.SERVING
    assert (await agent.health.Version(pb.CheckRequest())).agent_version


async def test_a_sandbox_is_forgotten_and_another_made(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    assert await _code(agent.rpc.ForgetSandbox(pb.ForgetSandboxRequest())) is grpc.StatusCode.FAILED_PRECONDITION
    await agent.remove("c1")
    await agent.rpc.ForgetSandbox(pb.ForgetSandboxRequest())
    assert await _code(agent.create("c2", "true")) is grpc.StatusCode.FAILED_PRECONDITION
    await agent.rpc.CreateSandbox(pb.CreateSandboxRequest(sandbox_id="another", hostname="other"))
    stdout = await agent.stdio()
    await agent.run("c1", "echo", "again", stdout=stdout)
    assert await stdout.read_all() == b"again\n"
    assert (await agent.wait("c1")).status == 0
    await agent.remove("c1")


async def plain(agent: AgentClient, name: str, request: Any) -> tuple[int, bytes]:
    """A call without gRPC, on a connection of its own."""
    stream = await agent.dial(Port.CALLS)
    try:
        return await make_call(stream.socket, name, (), request.SerializeToString())
    finally:
        stream.close()


async def test_calls_without_grpc(agent: AgentClient) -> None:
    code, data = await plain(agent, "CreateContainer", pb.CreateContainerRequest(container_id="c1", oci=b"{}"))
    assert (grpc.StatusCode.FAILED_PRECONDITION.value[0], b"there is no sandbox") == (code, data[1:20])
    assert await plain(agent, "CreateSandbox", pb.CreateSandboxRequest(sandbox_id="s", hostname="h")) == (0, b"")
    stdout = await agent.stdio()
    await agent.create("c1", "sh", "-c", "echo out; exit 7", stdout=stdout)
    assert (await plain(agent, "StartContainer", pb.StartContainerRequest(container_id="c1")))[0] == 0
    code, data = await plain(agent, "WaitProcess", pb.WaitProcessRequest(container_id="c1"))
    assert (code, pb.WaitProcessResponse.FromString(data).status) == (0, 7)
    assert await stdout.read_all() == b"out\n"
    request = pb.CreateContainerRequest(container_id="c2", oci=agent.spec("not-there"))
    code, data = await plain(agent, "CreateContainer", request)
    assert code
    assert data.startswith(b"command-not-found\0")
    assert (await plain(agent, "Check", pb.CheckRequest()))[0] == 0
    assert (await plain(agent, "StreamSpans", pb.StreamSpansRequest()))[0] == 12
    assert (await plain(agent, "WaitProcess", pb.CreateSandboxRequest(dns=["\0"])))[0]
    await agent.remove("c1")


async def test_a_call_ends_with_its_connection(agent: AgentClient) -> None:
    await agent.create_sandbox()
    await agent.run("c1", "sleep", "100")
    assert agent.agent
    stream = await agent.dial(Port.CALLS)
    await stream.send(request_of("WaitProcess", (), pb.WaitProcessRequest(container_id="c1").SerializeToString()))
    running = agent.agent._calls._tasks
    async with asyncio.timeout(10):
        while not running:
            await agent.health.Check(pb.CheckRequest())
        stream.close()
        while running:
            await agent.health.Check(pb.CheckRequest())
    for nonsense in (b"", b"\xff" * 7, b"\0" * 7 + b"more", request_of("Nothing", (), b"")):
        stream = await agent.dial(Port.CALLS)
        await stream.send(nonsense)
        stream.half_close()
        await stream.read_all()
    await agent.remove("c1")
