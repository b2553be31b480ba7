"""Exporters of other packages behind our ledger: each span once, whatever they do."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from kata_traces.send import delivery as export
from kata_traces.send.connect import connect
from kata_traces.send.delivery import push
from kata_traces.send.ledger import load_progress
from kata_traces.send.settings import PluginSettings, SettingsError, targets
from kata_traces.store.store import Store
from kata_traces.store.writer import StoreWriter
from support.collectors import http_collector
from support.packages import install

pytestmark = pytest.mark.slow


class Filed:
    """What the exporter `filed` wrote."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "filed"
        self.away = directory / "away"

    @property
    def names(self) -> list[str]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [line.split()[1] for line in lines]

    @property
    def times(self) -> set[int]:
        """How often spans came."""
        return set(Counter(line.split()[0] for line in self.file.read_text().splitlines()).values())


@pytest.fixture
def filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filed:
    (tmp_path / "site").mkdir()
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = Filed(tmp_path)
    monkeypatch.setenv("SPANS_TO", str(found.file))
    monkeypatch.setenv("SPANS_AWAY", str(found.away))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "filed")
    return found


def write(writer: StoreWriter, *lines: list[str]) -> None:
    """Ended spans, each list in a line of its own."""
    tracer = writer.tracer("kata", source="runtime")
    for names in lines:
        spans = [tracer.start(name) for name in names]
        for span in spans:
            span.finish()
        assert writer.flush(10)


def finished(tmp_path: Path, *lines: list[str]) -> Store:
    writer = StoreWriter.open(tmp_path / "traces", "s1")
    write(writer, *lines)
    assert writer.close(10)
    return writer.store


def reap(link: export.Link) -> int:
    _, status = os.waitpid(link.pid, 0)
    link._reaped = True
    return os.waitstatus_to_exitcode(status)


def test_push_delivers_once(tmp_path: Path, filed: Filed) -> None:
    store = finished(tmp_path, ["a", "b"], ["c"])
    [target] = targets(os.environ)
    result = push(store, target)
    assert (result.complete, result.spans, filed.names) == (True, 3, ["a", "b", "c"])
    assert push(store, target).spans == 0
    assert filed.names == ["a", "b", "c"]


def test_each_of_several_gets_everything_once(tmp_path: Path, filed: Filed, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_collector() as collected, StoreWriter.open(tmp_path / "traces", "s1") as writer:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp,filed,console")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        link = export.start(writer.store, targets(os.environ))
        writer.on_append = link.notify
        write(writer, ["a"], ["b", "c"])
        assert writer.close(10)
        link.close()
        assert reap(link) == 0
        assert filed.names == collected.names == ["a", "b", "c"]
        assert (writer.store.directory / "export.log").read_text().count('"name": "') == 3
        assert sorted(load_progress(writer.store)) == [
            "exporter console",
            "exporter filed",
            f"http/protobuf {collected.endpoint}/v1/traces",
        ]


def test_one_that_is_away_is_tried_later_and_holds_up_nobody(
    tmp_path: Path, filed: Filed, monkeypatch: pytest.MonkeyPatch
) -> None:
    filed.away.touch()
    with http_collector() as collected, StoreWriter.open(tmp_path / "traces", "s1") as writer:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "filed,otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        link = export.start(writer.store, targets(os.environ))
        writer.on_append = link.notify
        write(writer, ["a"], ["b", "c"])
        assert collected.wait(lambda c: c.names == ["a", "b", "c"])
        assert filed.names == []
        filed.away.unlink()
        assert writer.close(10)
        link.close()
        assert reap(link) == 0
        assert sorted(filed.names) == ["a", "b", "c"]


def test_killed_it_goes_on_where_it_was(tmp_path: Path, filed: Filed) -> None:
    with StoreWriter.open(tmp_path / "traces", "s1") as writer:
        link = export.start(writer.store, targets(os.environ))
        for number in range(4):
            write(writer, [f"a{number}", f"b{number}"])
            os.kill(link.pid, signal.SIGKILL)
            os.waitid(os.P_PID, link.pid, os.WEXITED | os.WNOWAIT)
            link.notify()  # starts it again
        assert writer.close(10)
        link.close()
        assert reap(link) == 0
        assert len(filed.names) == 8
        assert filed.times == {1}


def test_a_poisoned_batch_holds_nothing_up(tmp_path: Path, filed: Filed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANS_POISON", "poison")
    with StoreWriter.open(tmp_path / "traces", "s1") as writer:
        write(writer, ["a"], ["b", "poison", "c", "d", "e"], ["f"], ["poison"], ["g", "h"])
        assert writer.close(10)
        link = export.start(writer.store, targets(os.environ))
        link.close()
        assert reap(link) == 75
        assert sorted(filed.names) == ["a", "b", "c", "d", "e", "f", "g", "h"]
        assert filed.times == {1}
        progress = load_progress(writer.store)["exporter filed"]
        assert (len(progress.refused), progress.deferred, progress.spans) == (2, {}, 8)
        # It is mended: then these two go, and nothing goes twice.
        monkeypatch.setenv("SPANS_POISON", "")
        [target] = targets(os.environ)
        assert push(writer.store, target).complete
        assert sorted(filed.names)[-2:] == ["poison", "poison"]
        assert filed.times == {1}


def test_push_passes_a_poisoned_batch_by(tmp_path: Path, filed: Filed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANS_POISON", "poison")
    store = finished(tmp_path, ["poison", "a"], ["b"])
    [target] = targets(os.environ)
    result = push(store, target)
    assert (result.spans, result.refused, result.left) == (2, 1, 0)
    assert sorted(filed.names) == ["a", "b"]


def test_push_to_one_that_is_away_loses_nothing(tmp_path: Path, filed: Filed) -> None:
    filed.away.touch()
    store = finished(tmp_path, *([f"a{number}", f"b{number}"] for number in range(6)))
    [target] = targets(os.environ)
    first = push(store, target)
    assert (first.spans, first.refused, first.complete) == (0, 0, False)
    assert first.left == store.spans.stat().st_size
    filed.away.unlink()
    assert push(store, target).complete
    assert len(filed.names) == 12
    assert filed.times == {1}


def test_one_that_hangs_is_given_up(tmp_path: Path, filed: Filed) -> None:
    store = finished(tmp_path, ["a"])
    result = push(store, PluginSettings("hanging", timeout=0.2))
    assert "has not come back after 0.2 s" in result.error
    assert result.left > 0


def test_one_that_does_not_start_is_named(filed: Filed) -> None:
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER: 'broken' does not start: RuntimeError: not today"):
        connect(PluginSettings.named("broken"))
