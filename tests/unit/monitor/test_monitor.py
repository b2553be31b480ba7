"""`kata-monitor` in front of sandboxes that answer, hang, lie, or have gone."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from kata_common import places
from kata_protos import pods_pb2 as pb
from kata_runtime.errors import SandboxError
from kata_runtime.http import MAX_HEAD, OPENMETRICS, Server
from kata_runtime.metrics.families import SandboxCollector
from kata_runtime.monitor import main, scrape
from kata_runtime.sandbox.guest_calls import GuestCalls
from kata_runtime.sandbox.management import serve_management
from kata_telemetry.span import Level
from kata_traces.read.metrics import expose
from support.promtool import judge, lint

pytestmark = pytest.mark.slow


class Sandbox:
    """Answers as a real one does, of this process."""

    agent_url = "vsock://3:1024"
    tracing: dict[str, object] = {}  # noqa: RUF012 - nobody changes it

    @property
    def guest(self) -> GuestCalls:
        raise SandboxError("there is no guest")

    async def switch_tracing(self, *, runtime: bool, agent: bool, level: Level | None = None) -> None:
        raise NotImplementedError

    async def metrics(self, *, openmetrics: bool) -> str:
        return expose([], openmetrics=openmetrics, more=[SandboxCollector(os.getpid())])

    async def volume_stats(self, volume: str) -> dict[str, object]:
        return {}

    async def resize_volume(self, volume: str, size: int) -> None:
        pass


class Says(Sandbox):
    """Answers with a text."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def metrics(self, *, openmetrics: bool) -> str:
        return self._text


class Hangs(Sandbox):
    """Never answers."""

    async def metrics(self, *, openmetrics: bool) -> str:
        await asyncio.Event().wait()
        return ""


@asynccontextmanager
async def monitored(directory: Path, **sandboxes: Sandbox) -> AsyncIterator[Path]:
    """A monitor in front of them; its unix socket."""
    run = directory / "run"
    run.mkdir()
    async with AsyncExitStack() as stack:
        for name, sandbox in sandboxes.items():
            (run / name).mkdir()
            (run / name / places.CONTROL_SOCKET).touch()
            await stack.enter_async_context(serve_management(run / name / places.MANAGEMENT_SOCKET, sandbox))
        server = Server(main.routes(run, str(directory / "cri.sock")))
        listening = await asyncio.start_unix_server(server.connected, directory / "m.sock", limit=MAX_HEAD)
        try:
            yield directory / "m.sock"
        finally:
            listening.close()
            await server.close()


async def get(path: Path, what: str, accept: str = "text/plain", method: str = "GET") -> tuple[int, str]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"{method} {what} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    async with asyncio.timeout(20):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body.decode()


@pytest.mark.parametrize("count", [0, 1, 20])
async def test_promtool_takes_it_for_any_number_of_sandboxes(count: int, tmp_path: Path) -> None:
    async with monitored(tmp_path, **{f"s{number}": Sandbox() for number in range(count)}) as path:
        status, text = await get(path, "/metrics")
        assert status == 200
        assert await asyncio.to_thread(lint, text) == []
        found = {family.name: family for family in parse(text)}
        [running] = found["kata_monitor_running_shim_count"].samples
        assert running.value == count
        assert ("kata_hypervisor_proc_status" in found) == bool(count)
        if count:
            ids = {sample.labels["sandbox_id"] for sample in found["kata_shim_threads"].samples}
            assert ids == {f"s{number}" for number in range(count)}
        status, text = await get(path, "/metrics", accept=OPENMETRICS)
        names = {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
        assert "kata_monitor_scrape_count" in names


async def test_one_sandbox_and_some_families(tmp_path: Path) -> None:
    async with monitored(tmp_path, one=Sandbox(), two=Sandbox()) as path:
        _, text = await get(path, "/metrics?sandbox=two&filter_family=kata_shim_threads,kata_shim_fds")
        families = list(parse(text))
        assert {family.name for family in families} == {"kata_shim_threads", "kata_shim_fds"}
        assert {sample.labels["sandbox_id"] for family in families for sample in family.samples} == {"two"}
        assert (await get(path, "/metrics?sandbox=three"))[0] == 404
        assert (await get(path, "/metrics?sandbox=../one"))[0] == 404


async def test_other_paths(tmp_path: Path) -> None:
    async with monitored(tmp_path, one=Sandbox(), two=Sandbox()) as path:
        assert (await get(path, "/sandboxes")) == (200, "one\ntwo\n")
        assert json.loads((await get(path, "/sandboxes?format=json"))[1]) == ["one", "two"]
        assert (await get(path, "/agent-url?sandbox=one")) == (200, "vsock://3:1024")
        assert (await get(path, "/agent-url"))[0] == 404
        assert "/metrics" in (await get(path, "/"))[1]
        status, text = await get(path, "/debug/pprof/")
        assert (status, "programs in Go" in text) == (501, True)
        assert (await get(path, "/nosuch"))[0] == 404
        assert (await get(path, "/metrics", method="POST"))[0] == 405


async def test_one_that_fails_costs_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "_TIMEOUT", 0.5)
    liars = {"junk": Says("\0{{{ \n} 1"), "long": Says("# x\n" * 2_000_000), "hangs": Hangs()}
    async with monitored(tmp_path, good=Sandbox(), **liars) as path:
        (tmp_path / "run/gone").mkdir()
        (tmp_path / "run/gone" / places.CONTROL_SOCKET).touch()
        status, text = await get(path, "/metrics")
        assert status == 200
        found = {family.name: family.samples for family in parse(text)}
        assert {sample.labels["sandbox_id"] for sample in found["kata_shim_threads"]} == {"good"}
        assert found["kata_monitor_scrape_failed_count"][0].value == 4


async def test_who_has_another_type_does_not_break_the_text(tmp_path: Path) -> None:
    other = Says("# TYPE kata_shim_threads counter\nkata_shim_threads 5\n# TYPE kata_shim_fds gauge\nkata_shim_fds 5\n")
    async with monitored(tmp_path, a=Sandbox(), b=other) as path:
        _, text = await get(path, "/metrics")
        assert await asyncio.to_thread(lint, text) == []
        fds = {f.name: f.samples for f in parse(text)}["kata_shim_fds"]
        assert {sample.labels["sandbox_id"] for sample in fds} == {"a", "b"}


async def test_what_is_said_twice_counts_once(tmp_path: Path) -> None:
    """As a guest may that wants the rest refused; and what it says after nonsense is lost, not what came before."""
    guest = 'kata_guest_load{item="load1"} 1\n' * 3 + '# TYPE kata_guest_load gauge\nkata_guest_load{item="load1"} 2\n'
    text = expose([], openmetrics=False, more=[SandboxCollector(os.getpid())]) + guest + "{nonsense\nkata_guest_x 1\n"
    async with monitored(tmp_path, one=Says(text)) as path:
        _, answer = await get(path, "/metrics")
        assert await asyncio.to_thread(lint, answer) == ["kata_guest_load no help text"]
        found = {family.name: family.samples for family in parse(answer)}
        assert [sample.value for sample in found["kata_guest_load"]] == [1]
        assert len(found["kata_shim_threads"]) == 1
        assert found["kata_monitor_scrape_failed_count"][0].value == 1


async def test_names_of_pods(tmp_path: Path) -> None:
    """From whatever speaks CRI."""
    item = pb.PodSandbox(id="one", metadata=pb.PodSandboxMetadata(name='w"\n', uid="u-1", namespace="n"))

    async def answer(request: bytes, context: object) -> bytes:
        return pb.ListPodSandboxResponse(items=[item]).SerializeToString()

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    generic = grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", {"ListPodSandbox": handler})
    server.add_generic_rpc_handlers((generic,))
    server.add_insecure_port(f"unix:{tmp_path}/cri.sock")
    await server.start()
    try:
        async with monitored(tmp_path, one=Sandbox(), two=Sandbox()) as path:
            _, text = await get(path, "/metrics")
    finally:
        await server.stop(0)
    assert await asyncio.to_thread(lint, text) == []
    samples = {
        s.labels["sandbox_id"]: s.labels for f in parse(text) if f.name == "kata_shim_threads" for s in f.samples
    }
    assert samples["one"] == {"sandbox_id": "one", "cri_uid": "u-1", "cri_name": 'w"\n', "cri_namespace": "n"}
    assert samples["two"]["cri_name"] == ""


@pytest.mark.parametrize("address", ["", "8090", "127.0.0.1:x", "127.0.0.1:99999", "nowhere.invalid:1"])
def test_an_address_that_is_none(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gets that far")
    assert main.main(["--listen-address", address]) == 125
    assert "--listen-address" in capsys.readouterr().err


def test_alerts_and_dashboard() -> None:
    """promtool takes the rules, and all families that either names are served."""
    docs = Path(__file__).parents[3] / "docs"
    done = judge("check", "rules", str(docs / "prometheus-alerts.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    dashboard = json.loads((docs / "grafana-sandboxes.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked += (docs / "prometheus-alerts.yml").read_text()
    served = {metric.name for metric in SandboxCollector(os.getpid()).collect()}
    served |= {metric.name for metric in scrape.Scraper(docs).collect()}
    named = {name.removesuffix("_bucket") for name in re.findall(r"\bkata_\w+", asked)}
    assert len(named) >= 8
    assert named - served == set()
