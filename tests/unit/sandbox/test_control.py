"""The control socket: who asks properly gets a process, who does not gets a sentence."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kata_common import places
from kata_runtime.config.model import Config, QemuConfig
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox import reach
from kata_runtime.sandbox.rootfs import Rootfs
from kata_runtime.sandbox.sandbox import Sandbox, SandboxOptions
from kata_runtime.sandbox.state import Directories
from kata_runtime.sandbox.streams import Stdio
from kata_runtime.sandbox.trace import SandboxTrace
from support.fake_guest import FakeGuest

SPEC: dict[str, Any] = {
    "process": {"args": ["sh"], "cwd": "/", "env": ["A=1", "B=2"], "user": {"uid": 7, "gid": 8}, "terminal": True}
}


class Served:
    """A sandbox with one container that runs; `ask` talks to it as a command does, in a thread."""

    def __init__(self, guest: FakeGuest, run_dir: Path) -> None:
        self.guest = guest
        self.run_dir = run_dir

    async def ask(self, talk: Callable[[reach.Connection], Any]) -> Any:
        def body() -> Any:
            with reach.Connection.open("s1", self.run_dir) as connection:
                return talk(connection)

        async with asyncio.timeout(20):
            return await asyncio.to_thread(body)

    async def until(self, name: str) -> Any:
        """The first request of this name that reaches the agent."""
        async with asyncio.timeout(20):
            while True:
                for request in self.guest.agent.requests:
                    if type(request).__name__ == f"{name}Request":
                        return request
                await asyncio.sleep(0.005)


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[Served]:
    for name in ("kernel", "initrd", "image"):
        (root / name).touch()
    qemu = QemuConfig(kernel=str(root / "kernel"), initrd=str(root / "initrd"), image=str(root / "image"))
    guest, config = FakeGuest(), Config(qemu)
    trace = SandboxTrace.open(config, "s1", command="test")
    directories = Directories(root / "run", root / "layers")
    sandbox = Sandbox(
        "s1", config, trace, SandboxOptions(directories=directories, image_dir=root, obtain_vm=guest.obtain)
    )
    try:
        await sandbox.start()
        container = await sandbox.create_container("c1", SPEC, Rootfs(root), Stdio())
        await container.start()
        yield Served(guest, directories.run)
    finally:
        await sandbox.stop()
        trace.close("exit 0", None)
    assert not (directories.run / "s1" / places.CONTROL_SOCKET).exists()


async def test_who_is_there(tmp_path: Path) -> None:
    async with served(tmp_path) as there:
        said = await there.ask(lambda connection: connection.ask({"op": "containers"}))
        assert said["sandbox"] == "s1"
        assert [(entry["id"], entry["state"], entry["args"]) for entry in said["containers"]] == [
            ("c1", "running", ["sh"])
        ]

        async def find(name: str, container: str = "") -> reach.Target:
            return await asyncio.to_thread(reach.find, name, container, there.run_dir)

        for words in (("s1",), ("s",), ("c1",), ("s1", "c1"), ("s1", "c")):
            assert await find(*words) == reach.Target("s1", "c1")
        for words, why in ((("x",), "no sandbox 'x'"), (("s1", "x"), "no container 'x'"), (("../s1",), "no sandbox")):
            with pytest.raises(SandboxError, match=why):
                await find(*words)


async def test_a_life_that_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as there:
        life = reach.Life("s1", there.run_dir)
        assert not await asyncio.to_thread(life.over, 0.01)
    with life:
        assert await asyncio.to_thread(life.over, 20)
    with pytest.raises(SandboxError, match="no sandbox 's1'"):
        reach.Life("s1", there.run_dir)


async def test_exec_is_the_container_s_process_with_changes(tmp_path: Path) -> None:
    async with served(tmp_path) as there:

        def talk(connection: reach.Connection) -> int:
            process = {"args": ["id"], "env": ["B=3"], "cwd": "/tmp"}
            connection.send({"op": "exec", "container": "c1", "process": process, "stdio": []})
            assert connection.receive() == {"started": True}
            return int(connection.receive()["exit"])

        asked = asyncio.create_task(there.ask(talk))
        request = await there.until("ExecProcess")
        process = json.loads(request.process)
        assert process["args"] == ["id"]
        assert process["env"] == ["A=1", "B=3"]
        assert (process["cwd"], process["user"]["uid"], process.get("terminal", False)) == ("/tmp", 7, False)
        there.guest.agent.end("c1", request.exec_id, status=9)
        assert await asked == 9


async def test_a_caller_that_goes_away_takes_its_process_along(tmp_path: Path) -> None:
    async with served(tmp_path) as there:

        def talk(connection: reach.Connection) -> None:
            process = {"args": ["sleep"], "cwd": "/"}
            connection.send({"op": "exec", "container": "c1", "process": process, "complete": True, "stdio": []})
            connection.receive()

        await there.ask(talk)
        request = await there.until("SignalProcess")
        assert request.exec_id.startswith("kata-")
        assert request.signal == signal.SIGKILL


@pytest.mark.parametrize(("stands", "signals"), [(True, [signal.SIGKILL]), (False, [])])
async def test_who_stands_for_a_container(tmp_path: Path, stands: bool, signals: list[int]) -> None:
    async with served(tmp_path) as there:

        def talk(connection: reach.Connection) -> None:
            connection.send({"op": "attach", "container": "c1", "stands": stands})
            connection.send({"resize": [24, 80]})

        await there.ask(talk)
        size = await there.until("TtyWinResize")
        assert (size.row, size.column) == (24, 80)
        if stands:
            await there.until("SignalProcess")
        sent = [r.signal for r in there.guest.agent.requests if type(r).__name__ == "SignalProcessRequest"]
        assert sent == signals


NONSENSE: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"GET / HTTP/1.1\n", "not JSON"),
    "no object": (b"[1]\n", "no object"),
    "nothing known": (b'{"op": "fly"}\n', "no request is called 'fly'"),
    "no such container": (b'{"op": "attach", "container": "x"}\n', "no container 'x'"),
    "a container of another type": (b'{"op": "pids", "container": {"a": 1}}\n', "container"),
    "no process": (b'{"op": "exec"}\n', '"process" is no object'),
    "a process without a command": (b'{"op": "exec", "process": {"args": []}}\n', "process.args"),
    "descriptors that did not come": (
        b'{"op": "exec", "process": {"args": ["a"]}, "stdio": ["stdout"]}\n',
        "names 1 descriptors, and 0 came",
    ),
    "a name that is none": (b'{"op": "exec", "process": {"args": ["a"]}, "stdio": 7}\n', "no list"),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_gets_a_sentence(tmp_path: Path, name: str) -> None:
    content, why = NONSENSE[name]
    async with served(tmp_path) as there:
        reader, writer = await asyncio.open_unix_connection(there.run_dir / "s1" / places.CONTROL_SOCKET)
        writer.write(content)
        async with asyncio.timeout(20):
            said = json.loads(await reader.readline())
        writer.close()
        assert why in said["error"]
        # And it goes on.
        assert (await there.ask(lambda connection: connection.ask({"op": "containers"})))["sandbox"] == "s1"


async def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    async with served(tmp_path) as there:
        reading, writing = os.pipe()

        def talk(_: reach.Connection) -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(there.run_dir / "s1" / places.CONTROL_SOCKET))
                socket.send_fds(client, [b'{"op": "fly"}\n'], [writing])
                return client.recv(4096)

        assert b"error" in await there.ask(talk)
        os.close(writing)
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(os.read, reading, 1) == b""
        os.close(reading)
