"""The trace forwarder: who is who, what is kept, and what hostile guests get."""

import asyncio
import secrets
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_telemetry import otlp
from kata_telemetry.wire import MAX_FRAME, NUMBER, FrameError, Frames, frame
from kata_traces.forwarder.inbox import Origin, _Rate
from kata_traces.forwarder.main import CID_ANY, parser, plan
from kata_traces.forwarder.sources import SourceError, Template, VsockSource
from kata_traces.read.trace import load_store
from kata_traces.store.announce import Announcement
from kata_traces.store.spool import Spool, frames
from kata_traces.store.store import Store
from support.forwarder import batch, host, names, span_names


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), max_size=60))
@settings(max_examples=100, deadline=None)
def test_frames_come_out_as_they_went_in_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, payloads))
    taker, found = Frames(), []
    while stream:
        size = cuts.pop() if cuts else len(stream)
        found += list(taker.feed(stream[:size]))
        stream = stream[size:]
    assert found == payloads
    assert taker.held == 0


@given(st.lists(st.binary(max_size=2000), max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_stream_makes_frames_hold_more_than_one(chunks: list[bytes]) -> None:
    taker = Frames(longest=1000)
    for chunk in chunks:
        try:
            found = list(taker.feed(chunk))
        except FrameError:
            return
        assert all(len(payload) <= 1000 for payload in found)
        assert taker.held < 1000 + NUMBER.size


def test_a_frame_that_is_too_long_is_known_before_it_is_there() -> None:
    with pytest.raises(FrameError, match="18446744073709551615 bytes; at most 262144"):
        list(Frames().feed(NUMBER.pack(2**64 - 1)))
    assert list(Frames().feed(NUMBER.pack(MAX_FRAME))) == []


@pytest.mark.parametrize(
    ("template", "base", "parts"),
    [
        ("/run/kata/{ID}/ports/vsock.sock", "/run/kata", ("{ID}", "ports", "vsock.sock")),
        ("/run/vc/vm/{ID}/clh.sock", "/run/vc/vm", ("{ID}", "clh.sock")),
        ("/tmp/vm-{ID}.sock", "/tmp", ("vm-{ID}.sock",)),
        ("/run/one/kata.hvsock", "/run/one", ("kata.hvsock",)),
    ],
)
def test_templates(template: str, base: str, parts: tuple[str, ...]) -> None:
    assert Template.parse(template) == Template(Path(base), parts)


@pytest.mark.parametrize("text", ["relative/{ID}/x", "/run/{ID}/{ID}.sock", "/run/../{ID}/x", "/"])
def test_templates_that_can_not_be(text: str) -> None:
    with pytest.raises(SourceError, match="--socket-path"):
        Template.parse(text)


def test_only_names_of_sandboxes_match() -> None:
    template = Template.parse("/tmp/vm-{ID}.sock")
    assert template.id_of(0, "vm-a1.sock") == "a1"
    for name in ("vm-.sock", "vm-..sock", "vm-a/b.sock", "other", "vm-" + "a" * 77 + ".sock", "vm-~1.sock"):
        assert template.id_of(0, name) is None, name


async def test_sandboxes_that_come_and_go(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        ids = [f"sandbox{number}" for number in range(5)]
        for sandbox_id in ids:
            trace_id = found.sandbox(sandbox_id)
            with await found.guest(sandbox_id) as guest:
                guest.send(batch(trace_id, f"of {sandbox_id}"))
                await asyncio.to_thread(guest.confirmed, 1)
        for sandbox_id in ids:
            assert span_names(found.store(sandbox_id)) == [f"of {sandbox_id}"]
        assert found.source
        for sandbox_id in ids:
            shutil.rmtree(found.run_dir / sandbox_id)
        source = found.source
        await found.until(lambda: not source.sockets)
        # The same name again is another sandbox.
        shutil.rmtree(found.store(ids[0]).directory)
        trace_id = found.sandbox(ids[0])
        with await found.guest(ids[0]) as guest:
            guest.send(batch(trace_id, "again"))
            await asyncio.to_thread(guest.confirmed, 1)
        assert span_names(found.store(ids[0])) == ["again"]


async def test_a_guest_is_who_its_socket_says(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        mine, other = found.sandbox("mine"), found.sandbox("other")
        with await found.guest("mine") as guest:
            forged = otlp.parse(batch(other, "forged") + batch(mine, "good"))
            for resource in forged.resource_spans:
                for key, value in (("service.name", "kata"), ("sandbox_id", "other")):
                    pair = resource.resource.attributes.add()
                    pair.key, pair.value.string_value = key, value
            guest.send(forged.SerializeToString())
            await asyncio.to_thread(guest.confirmed, 1)
        assert list(found.store("other").lines()) == []
        (line,) = found.store("mine").lines()
        assert b'"name":"good"' in line
        assert b'"stringValue":"kata-agent"' in line
        assert b'"stringValue":"other"' not in line
        assert b'"stringValue":"kata"' not in line
    assert found.store("mine").meta().lost == {"from the guest, refused: another trace": 1}


async def test_what_was_not_confirmed_may_come_again(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        data = batch(trace_id, "once", "and once")
        for _ in range(2):
            with await found.guest("s1") as guest:
                guest.send(data)
                await asyncio.to_thread(guest.confirmed, 1)
        assert span_names(found.store("s1")) == ["once", "and once"]
    # Also where the forwarder was killed meanwhile.
    async with host(tmp_path) as found:
        with await found.guest("s1") as guest:
            guest.send(data, batch(trace_id, "new"))
            await asyncio.to_thread(guest.confirmed, 2)
        assert span_names(found.store("s1")) == ["once", "and once", "new"]


async def test_ids_of_the_host_are_not_the_guests(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        store = found.store("s1")
        store.spans.write_bytes(b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"spanId":"4848484848484848"}]}]}]}\n')
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, {"span_id": b"H" * 8, "name": "StartVM"}, "good"))
            await asyncio.to_thread(guest.confirmed, 1)
        assert [names(payload) for payload in frames(store.agent_spans)] == [["good"]]


async def test_an_agent_without_a_traced_runtime_makes_the_root(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        found.sandbox("s1", traced=False)
        trace_id = b"T" * 16
        root = {"name": "rootSpan", "span_id": b"A" * 8, "parent_span_id": b""}
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, "child", parent=b"A" * 8), batch(trace_id, root), batch(b"X" * 16, "foreign"))
            await asyncio.to_thread(guest.confirmed, 3)
        trace = load_store(found.store("s1"))
        assert trace
        assert (trace.trace_id, trace.root.name, len(trace.spans)) == (trace_id.hex(), "rootSpan", 2)
        assert trace.orphans == []


async def test_a_sandbox_that_no_runtime_announced(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        found.sandbox("s1", announced=False)
        with await found.guest("s1") as guest:
            guest.send(batch(b"T" * 16, "alone"))
            await asyncio.to_thread(guest.confirmed, 1)
            assert found.store("s1").live
        shutil.rmtree(found.run_dir / "s1")
        await found.until(lambda: not found.store("s1").live)
        assert found.store("s1").meta().outcome == "closed"
        found.sandbox("s1", announced=False)
        with await found.guest("s1") as guest:
            guest.send(batch(b"U" * 16, "another"))
            await asyncio.to_thread(guest.confirmed, 1)
        assert span_names(found.store("s1")) == ["another"]
        assert span_names(found.store("s1~1")) == ["alone"]


async def test_what_the_agent_dropped_is_told(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        with await found.guest("s1") as guest:
            guest.send(otlp.note_of_dropped(7), batch(trace_id, "a"))
            await asyncio.to_thread(guest.confirmed, 2)
    assert found.store("s1").meta().lost == {"dropped by the agent": 7}
    assert found.store("s1").meta().spans == 1


@pytest.mark.parametrize(
    "rubbish",
    [
        pytest.param(b"\xff" * 64, id="a length beyond all bounds"),
        pytest.param(NUMBER.pack(MAX_FRAME + 1), id="a length beyond ours"),
    ],
)
async def test_a_broken_stream_is_closed(tmp_path: Path, rubbish: bytes) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, "before"))
            guest.raw(rubbish)
            assert await asyncio.to_thread(guest.closed)
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, "after"))
            await asyncio.to_thread(guest.confirmed, 1)
        assert span_names(found.store("s1")) == ["before", "after"]


async def test_half_frames_and_many_connections_of_one_guest_stop_nobody(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        found.sandbox("bad")
        good = found.sandbox("good")
        open_ones = [await found.guest("bad") for _ in range(6)]
        for guest in open_ones[:4]:
            guest.raw(NUMBER.pack(1000) + b"half")
        assert all([await asyncio.to_thread(guest.closed) for guest in open_ones[4:]])
        with await found.guest("good") as guest:
            guest.send(batch(good, "good"))
            await asyncio.to_thread(guest.confirmed, 1)
        for each in open_ones:
            each.close()
        assert span_names(found.store("good")) == ["good"]


async def test_kata_s_own_json_is_refused_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with host(tmp_path) as found:
        found.sandbox("s1")
        with await found.guest("s1") as guest:
            guest.send(b'{"span_context": {}}')
            await asyncio.to_thread(guest.confirmed, 1)
    assert "as Kata's own agent sends it" in caplog.text


async def test_what_has_come_before_the_end_is_kept(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, "a"))
            await asyncio.to_thread(guest.confirmed, 1)
            guest.send(*(batch(trace_id, f"late {number}") for number in range(20)))
            assert found.forwarder
            await found.forwarder.close()
        assert len(span_names(found.store("s1"))) == 21


async def test_a_killed_forwarders_socket_is_taken_over(tmp_path: Path) -> None:
    async with host(tmp_path) as found:
        trace_id = found.sandbox("s1")
        (await found.guest("s1")).close()
        stale = found.socket("s1").with_name("stale")
        found.socket("s1").rename(stale)
    stale.rename(found.socket("s1"))
    async with host(tmp_path) as found:
        with await found.guest("s1") as guest:
            guest.send(batch(trace_id, "a"))
            await asyncio.to_thread(guest.confirmed, 1)


def test_a_wall_clock_that_steps_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from kata_traces.store.quarantine import Quarantine

    guard = Quarantine("s1", since=time.time_ns(), trace_id=b"T" * 16, root_id=b"R" * 8)
    data = batch(b"T" * 16, "a")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 60_000_000_000)
    assert guard.rebuild(data) is not None
    assert guard.tally.lost() == {}


def test_a_spool_ends_with_a_whole_frame(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spool = Spool(store.agent_spans, longest=100)
    assert spool.append(b"a" * 50)
    assert not spool.append(b"b" * 50)
    spool.close()
    with store.agent_spans.open("ab") as file:
        file.write(NUMBER.pack(50) + b"half")
    assert list(frames(store.agent_spans)) == [b"a" * 50]
    spool = Spool(store.agent_spans)
    assert spool.append(b"c")
    spool.close()
    assert list(frames(store.agent_spans)) == [b"a" * 50, b"c"]


def test_a_sandbox_is_slowed_down_beyond_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = _Rate()
    assert rate.wait(4 * 1024 * 1024) == 0
    assert rate.wait(4 * 1024 * 1024) == pytest.approx(1)
    now += 10
    assert rate.wait(1024) == 0


def announce(directory: Path, sandbox_id: str, cid: int) -> None:
    (directory / sandbox_id).mkdir(parents=True, exist_ok=True)
    Announcement(sandbox_id, "/store", since=1, clock_offset=0, cid=cid).write(directory / sandbox_id)


def test_a_context_id_is_who_announced_it(tmp_path: Path) -> None:
    source = VsockSource(CID_ANY, 10240, tmp_path, lambda *_: None)
    assert source.find(7) is None
    announce(tmp_path, "a", 7)
    announce(tmp_path, "b", 8)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/trace.json").write_text("{}")
    first = source.find(7)
    assert first
    assert (first.sandbox_id, first.directory) == ("a", tmp_path / "a")
    # Its sandbox ended, another one got the number.
    shutil.rmtree(tmp_path / "a")
    announce(tmp_path, "d", 7)
    second = source.find(7)
    assert second
    assert second.sandbox_id == "d"
    assert source.find(0) is None


class FakeVsock(VsockSource):
    """A unix socket in place of AF_VSOCK; a client's address is its context id."""

    path: Path

    def _listener(self) -> "object":  # type: ignore[override]
        import socket

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.bind(str(self.path))
        listener.listen(8)
        return listener

    def _cid(self, address: object) -> int:
        return int(str(address).rpartition("-")[2]) if isinstance(address, str) else 0


async def test_a_vsock_peer_that_nobody_announced_is_turned_away(tmp_path: Path) -> None:
    import socket

    announce(tmp_path / "run", "a", 7)
    accepted: list[tuple[socket.socket, Origin]] = []
    came = asyncio.Event()

    def accept(stream: socket.socket, origin: Origin) -> None:
        accepted.append((stream, origin))
        came.set()

    source = FakeVsock(CID_ANY, 10240, tmp_path / "run", accept)
    source.path = tmp_path / "vsock"
    ready = asyncio.Event()
    task = asyncio.create_task(source.run(ready.set))
    await ready.wait()
    clients = {}
    for cid in (9, 7):
        clients[cid] = socket.socket(socket.AF_UNIX)
        clients[cid].bind(str(tmp_path / f"{secrets.token_hex(4)}-{cid}"))
        clients[cid].setblocking(False)
        await asyncio.get_running_loop().sock_connect(clients[cid], str(source.path))
    async with asyncio.timeout(20):
        await came.wait()
        assert await asyncio.get_running_loop().sock_recv(clients[9], 1) == b""
    ((stream, origin),) = accepted
    assert origin.sandbox_id == "a"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for each in (stream, *clients.values()):
        each.close()


def test_options(tmp_path: Path) -> None:
    absent, present = tmp_path / "absent", tmp_path
    default = plan(parser().parse_args([]), {}, absent)
    assert [target.target for target in default.targets] == ["grpc http://localhost:4317"]
    assert default.templates == ("/run/kata/{ID}/ports/vsock.sock",)
    assert (default.vsock, default.cid, default.port, default.service) == (False, CID_ANY, 10240, "kata-agent")
    assert plan(parser().parse_args([]), {}, present).vsock
    asked = plan(parser().parse_args(["-l", "trace", "--vsock-cid", "2", "--vsock-port", "7"]), {}, absent)
    assert (asked.vsock, asked.cid, asked.port) == (True, 2, 7)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    named = plan(parser().parse_args(["--socket-path", "/a/{ID}", "--socket-path", "/b"]), environment, absent)
    assert named.templates == ("/a/{ID}", "/b")
    assert [target.target for target in named.targets] == ["http/protobuf http://c:4318/v1/traces"]


@pytest.mark.slow
async def test_frames_of_nothing_are_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a guest that sends nothing but lengths would have a core of the host for itself."""
    monkeypatch.setattr("kata_traces.forwarder.inbox.RATE", 100 * 1024)
    monkeypatch.setattr("kata_traces.forwarder.inbox.BURST", 164 * 1024)
    async with host(tmp_path) as found:
        found.sandbox("s1")
        with await found.guest("s1") as guest:
            begin = time.monotonic()
            # 64 KiB for the connection, 1 KiB and some bytes for each frame: after a hundred of them it waits.
            guest.raw(NUMBER.pack(0) * 150)
            await asyncio.to_thread(guest.confirmed, 150)
            guest.raw(NUMBER.pack(0))
            await asyncio.to_thread(guest.confirmed, 151)
            assert time.monotonic() - begin >= 0.4
