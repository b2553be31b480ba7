"""The processes: `start`, its daemon, `delete`, `-info`, `-v`; without containerd."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kata_protos.containerd.bootstrap_pb2 import BootstrapParams
from kata_protos.containerd.task_pb2 import ConnectRequest, ConnectResponse, DeleteResponse
from kata_protos.containerd.types_pb2 import RuntimeInfo
from kata_runtime.shim import delete as deleting
from kata_runtime.shim import main as shim
from kata_runtime.shim.arguments import parse
from kata_runtime.shim.delete import Cleanup
from kata_runtime.shim.launch import Launch
from kata_runtime.shim.ttrpc.client import Client
from support import processes

ROOT = Path(__file__).parent.parent.parent.parent
HOST_SHIM = ROOT / "tests" / "support" / "host_shim.py"
CRI = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id")

pytestmark = pytest.mark.slow


class Bundles:
    """Bundles side by side, and shims for them that listen below them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.containerd = str(directory / "containerd.sock")

    def add(self, name: str, annotations: dict[str, str] | None = None) -> Path:
        bundle = self.directory / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations or {}}))
        return bundle

    def run(self, name: str, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        code = f"import sys, runpy; sys.path[:] = {sys.path!r}; runpy.run_path({str(HOST_SHIM)!r}, run_name='__main__')"
        command = [sys.executable, "-I", "-S", "-c", code, "-namespace", "ns", "-id", name, "-address", self.containerd]
        return subprocess.run(
            [*command, *arguments],
            cwd=self.directory / name,
            input=stdin,
            capture_output=True,
            env={"PATH": os.environ["PATH"]},
            timeout=30,
            check=False,
        )

    def start(self, name: str) -> str:
        """Start with bootstrap parameters, which let the socket be in our directory; returns the address."""
        done = self.run(name, "start", stdin=self.parameters(name))
        assert (done.returncode, done.stderr) == (0, b"")
        said = json.loads(done.stdout)
        assert (said["version"], said["protocol"]) == (3, "ttrpc")
        return str(said["address"])

    def parameters(self, name: str) -> bytes:
        """What containerd 2.3 writes to `start`'s stdin."""
        given = BootstrapParams(instance_id=name, namespace="ns", socket_dir=str(self.directory / "s"))
        return given.SerializeToString()

    def pid(self, name: str) -> int:
        return int((self.directory / name / "shim.pid").read_text())


@pytest.fixture
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    directory = tmp_path_factory.mktemp("b")
    yield Bundles(directory)
    for file in directory.glob("*/shim.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def wait_for_end(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(10_000), f"process {pid} does not end"
    os.close(handle)


async def connect(address: str, name: str) -> ConnectResponse:
    async with await Client.connect(address) as client:
        request = ConnectRequest(id=name)
        return await client.call("containerd.task.v3.Task", "Connect", request, ConnectResponse, timeout=20)


async def test_start_leaves_a_daemon_that_answers(bundles: Bundles) -> None:
    bundle = bundles.add("one")
    address = bundles.start("one")
    assert address.startswith(f"unix://{bundles.directory}/s/")
    assert (bundle / "address").read_text() == address
    response = await connect(address, "one")
    assert response.shim_pid == bundles.pid("one") != os.getpid()

    process = Path(f"/proc/{response.shim_pid}")
    assert (process / "cwd").readlink() == bundle
    assert (process / "comm").read_text() == "containerd-shim\n"
    assert os.getpgid(response.shim_pid) == os.getsid(response.shim_pid) == response.shim_pid
    links = {link.name: target for link, target in processes.open_files(response.shim_pid).items()}
    assert {links["0"], links["1"], links["2"]} == {"/dev/null"}
    # Neither pipes of ours nor anything else that was inherited.
    assert not [link for link in links.values() if link.startswith("pipe:")]
    assert Path(address.removeprefix("unix://")).stat().st_mode & 0o777 == 0o600
    assert int((process / "oom_score_adj").read_text()) == int(Path("/proc/self/oom_score_adj").read_text()) + 1

    os.kill(response.shim_pid, signal.SIGTERM)
    wait_for_end(response.shim_pid)
    assert not Path(address.removeprefix("unix://")).exists()


async def test_a_second_start_finds_the_first(bundles: Bundles) -> None:
    bundles.add("one")
    address = bundles.start("one")
    pid = bundles.pid("one")
    assert bundles.start("one") == address
    assert bundles.pid("one") == pid


async def test_a_socket_left_by_a_killed_shim_is_replaced(bundles: Bundles) -> None:
    bundles.add("one")
    address = bundles.start("one")
    first = bundles.pid("one")
    os.kill(first, signal.SIGKILL)
    wait_for_end(first)
    assert bundles.start("one") == address
    assert (await connect(address, "one")).shim_pid == bundles.pid("one") != first


async def test_containers_of_a_pod_get_the_sandboxes_address(bundles: Bundles) -> None:
    bundles.add("pod", {CRI[0]: "sandbox", CRI[1]: "pod"})
    member = bundles.add("one", {CRI[0]: "container", CRI[1]: "pod"})
    refused = bundles.run("one", "start", stdin=bundles.parameters("one"))
    assert refused.returncode == 1
    assert b"sandbox pod of container one has no shim at unix:///" in refused.stderr
    assert not (member / "address").exists()

    address = bundles.start("pod")
    assert bundles.start("one") == address
    assert (member / "address").read_text() == address
    assert not (member / "shim.pid").exists()

    # The sandbox lives on when one container's shim is said to be gone.
    assert bundles.run("one", "delete").returncode == 0
    assert (await connect(address, "pod")).shim_pid == bundles.pid("pod")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the socket is in /run/containerd")
def test_start_without_bootstrap_parameters_prints_the_plain_address(bundles: Bundles) -> None:
    bundles.add("one")
    done = bundles.run("one", "start")
    address = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert address.startswith("unix:///run/containerd/s/")
    assert "\n" not in address
    assert bundles.run("one", "-bundle", str(bundles.directory / "one"), "delete").returncode == 0
    assert not Path(address.removeprefix("unix://")).exists()


def test_what_start_loads(bundles: Bundles) -> None:
    """containerd waits: nothing heavy, and not much at all."""
    bundles.add("one")
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from kata_runtime.shim import main, start\n"
        "start._daemonise = lambda *_: (print(*sys.modules), sys.exit())\n"
        f"main.main(['-namespace', 'ns', '-id', 'one', '-address', {bundles.containerd!r}, 'start'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=bundles.directory / "one",
        input=bundles.parameters("one"),
        capture_output=True,
        check=True,
    )
    loaded = set(done.stdout.decode().split())
    assert "kata_runtime.shim.start" in loaded
    heavy = {
        "google.protobuf",
        "grpc",
        "opentelemetry",
        "pydantic",
        "asyncio",
        "dataclasses",
        "typing",
        "pathlib",
        "logging",
    }
    assert not heavy & loaded
    assert len(loaded) < 90


def test_delete_gives_a_living_shim_time_and_then_kills_it(bundles: Bundles) -> None:
    bundle = bundles.add("one")
    address = bundles.start("one")
    pid = bundles.pid("one")
    os.kill(pid, signal.SIGSTOP)  # hangs
    begin = time.monotonic()
    done = bundles.run("one", "delete")
    assert done.returncode == 0
    assert 2.5 < time.monotonic() - begin < 5
    response = DeleteResponse.FromString(done.stdout)
    assert (response.exit_status, response.pid) == (137, 0)
    assert abs(response.exited_at.seconds - time.time()) < 10
    wait_for_end(pid)
    assert not Path(address.removeprefix("unix://")).exists()
    assert (bundle / "config.json").exists()  # containerd removes bundles


def test_delete_leaves_strangers_alone(bundles: Bundles) -> None:
    bundle = bundles.add("one")
    precious = bundles.directory / "precious"
    precious.write_text("not a socket")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (bundle / "shim.pid").write_text(str(stranger.pid))
        (bundle / "address").write_text(f"unix://{precious}")
        assert bundles.run("one", "delete").returncode == 0
        assert stranger.poll() is None
        stranger.kill()
    (bundle / "shim.pid").unlink()
    assert precious.exists()


def test_delete_of_nothing(bundles: Bundles) -> None:
    (bundles.directory / "gone").mkdir()
    done = bundles.run("gone", "delete")
    assert (done.returncode, done.stderr) == (0, b"")
    assert DeleteResponse.FromString(done.stdout).exit_status == 137


def test_delete_does_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Cleanup):
        def sandbox(self, launch: Launch) -> int:
            raise OSError("the VM is stuck")

    (tmp_path / "config.json").write_text("{")
    unmounted: list[str] = []
    monkeypatch.setattr(deleting, "_unmount_below", unmounted.append)
    with pytest.raises(ExceptionGroup) as caught:
        deleting.delete(parse(["-namespace", "ns", "-id", "one", "-bundle", str(tmp_path), "delete"]), Failing())
    assert ["config.json" in str(caught.value.exceptions[0]), str(caught.value.exceptions[1])] == [
        True,
        "the VM is stuck",
    ]
    assert unmounted == [f"{tmp_path}/rootfs"]


def test_cleanup_is_told_whose_end_it_is(tmp_path: Path) -> None:
    class Watching(Cleanup):
        def sandbox(self, launch: Launch) -> int:
            return 4711

    data = deleting.delete(parse(["-namespace", "ns", "-id", "one", "-bundle", str(tmp_path), "delete"]), Watching())
    assert DeleteResponse.FromString(data).pid == 4711


def test_info(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as stdin:
        ours.sendall(b"\x0a\x03abc\x12\x01x")
        ours.close()
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": stdin}))
        monkeypatch.setattr(os, "isatty", lambda _: False)
        assert shim.main(["-info"]) == 0
    info = RuntimeInfo.FromString(capfdbinary.readouterr().out)
    assert (info.name, info.options.type_url, info.options.value) == ("io.containerd.kata.v2", "abc", b"x")
    assert info.version.version
    # By one, containerd 2.2 and newer would leave mounts to us: format/…, mkdir/…, erofs (its docs/mounts.md).
    assert not info.annotations


def test_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert shim.main(["-v"]) == 0
    assert capfd.readouterr().out.startswith("containerd-shim-kata-v2:\n  Version:  ")
    assert shim.main(["--help"]) == 0
    assert "-info" in capfd.readouterr().out


def test_a_mistake_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert shim.main(["-namespace", "ns", "start"]) == 2
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "containerd-shim-kata-v2: -id is missing\n")
