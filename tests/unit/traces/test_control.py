"""What controls a trace: levels, leaves, samplers, the flight recorder, log records as events."""

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from kata_common.files import Lock
from kata_telemetry import logs
from kata_telemetry.propagation import inject
from kata_telemetry.recorder import Recorder
from kata_telemetry.sampling import NAMES, Sampler, SamplerError
from kata_telemetry.span import NO_SPAN, Level, Site, Span, SpanContext, Tracer, current, use
from kata_traces.read.trace import Trace, load_store
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.store import Store
from kata_traces.store.writer import StoreWriter

site = Site(package="p", subsystem="s")
PARENT = SpanContext(1, 2, 1)
UNSAMPLED = SpanContext(1, 2, 0)


@pytest.fixture
def ended() -> list[Span]:
    return []


@pytest.fixture
def tracer(ended: list[Span]) -> Tracer:
    return Tracer("kata", ended.append, common={"source": "runtime", "sandbox_id": "box"})


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


# Levels


@pytest.mark.parametrize(
    ("level", "made"),
    [
        (Level.OFF, []),
        (Level.ESSENTIAL, ["essential"]),
        (Level.NORMAL, ["normal", "essential"]),
        (Level.DETAILED, ["detail", "normal", "essential"]),
    ],
)
def test_a_level_makes_what_is_up_to_it(tracer: Tracer, ended: list[Span], level: Level, made: list[str]) -> None:
    tracer.level = level
    with use(site.root(tracer, "root")), site.stage("essential"), site.span("normal"), site.detail("detail"):
        pass
    assert names(ended) == made


def test_children_of_what_is_not_made_keep_their_place(tracer: Tracer, ended: list[Span]) -> None:
    with site.root(tracer, "root") as root:
        with site.detail("detail") as detail, site.span("inner"):
            assert detail is NO_SPAN
        with use(site.start("later", level=Level.DETAILED)), site.span("second"):
            pass
    assert [(span.name, span.parent) for span in ended] == [("inner", root), ("second", root), ("root", None)]


def test_a_level_may_change_while_spans_are_open(tracer: Tracer, ended: list[Span]) -> None:
    with site.root(tracer, "root"):
        assert current().recording
        tracer.level = Level.OFF
        assert current() is NO_SPAN
        assert inject() == []
        with site.span("unseen"):
            pass
        tracer.level = Level.NORMAL
        with site.span("seen"):
            pass
    assert names(ended) == ["seen", "root"]


# Leaves


def test_nothing_is_under_what_lasts(tracer: Tracer, ended: list[Span]) -> None:
    tracer.leaves = True
    with site.root(tracer, "root") as root, site.span("Wait", lasts=True) as wait:
        caller = SpanContext.from_traceparent(dict(inject())["traceparent"])
        assert caller is not None
        assert caller.span_id == root.context.span_id
        with site.span("call", lasts=True) as call, site.span("inner"):
            pass
    assert [span.parent for span in ended] == [root, root, root, None]
    inner, outer = ended[0], ended[1]
    assert inner.links == [call.context]
    assert outer.links == [wait.context]


def test_where_the_root_lasts_everything_nests(tracer: Tracer, ended: list[Span]) -> None:
    with site.root(tracer, "root"), site.span("Wait", lasts=True) as wait, site.span("inner"):
        pass
    assert ended[0].parent is wait


def test_events_after_the_end_go_to_the_sandboxes_life(tracer: Tracer) -> None:
    with site.root(tracer, "root") as root:
        pass
    root.event("lost")
    assert list(root.events) == []
    tracer.lifetime = site.root(tracer, "sandbox")
    root.event("kept")
    assert [event.name for event in tracer.lifetime.events] == ["kept"]


@pytest.mark.parametrize(("root_mode", "misfits"), [("start", []), ("lifetime", ["later"])])
def test_children_may_come_after_a_root_that_is_about_the_start(
    tmp_path: Path, tracer: Tracer, root_mode: str, misfits: list[str]
) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    root = site.root(tracer, "root")
    root.set(trace_root=root_mode)
    writer.follow(tracer, root)
    root.finish()
    with use(root), site.span("later"):
        pass
    trace = read(writer)
    assert [misfit.span.name for misfit in trace.misfits()] == misfits
    assert trace.duration > trace.root.duration


# Sampling


@pytest.mark.parametrize(
    ("name", "without", "sampled", "unsampled"),
    [
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
    ],
)
def test_samplers(name: str, without: bool, sampled: bool, unsampled: bool) -> None:
    sampler = Sampler.resolve({}, name)
    assert [sampler.samples(7, parent) for parent in (None, PARENT, UNSAMPLED)] == [without, sampled, unsampled]


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_ratios_are_those_of_the_sdk(trace_id: int, ratio: float) -> None:
    theirs = TraceIdRatioBased(ratio).should_sample(None, trace_id, "root").decision is Decision.RECORD_AND_SAMPLE
    assert Sampler("traceidratio", ratio).samples(trace_id, None) is theirs
    assert Sampler("parentbased_traceidratio", ratio).samples(trace_id, None) is theirs
    assert Sampler("parentbased_traceidratio", ratio).samples(trace_id, PARENT)


def test_keys_go_before_variables() -> None:
    environ = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    assert Sampler.resolve(environ) == Sampler("traceidratio", 0.5)
    assert Sampler.resolve(environ, "always_off") == Sampler("always_off")
    assert Sampler.resolve({}) == Sampler("parentbased_always_on")
    for name in NAMES:
        assert Sampler.resolve({"OTEL_TRACES_SAMPLER": name.upper()}).name == name


@pytest.mark.parametrize(
    ("environ", "key", "argument", "said"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "", "", "OTEL_TRACES_SAMPLER: 'jaeger_remote' is none of"),
        ({}, "traceidratio", "2", "[runtime] trace_sampler_arg: '2' is no number from 0 to 1"),
        ({}, "traceidratio", "nan", "'nan' is no number"),
        ({}, "traceidratio", "half", "'half' is no number"),
    ],
)
def test_a_sampler_that_is_not_there(environ: dict[str, str], key: str, argument: str, said: str) -> None:
    with pytest.raises(SamplerError) as raised:
        Sampler.resolve(environ, key, argument)
    assert said in str(raised.value)


# Flight recorder


def recorded(trace_dir: Path, tracer: Tracer, recorder: Recorder, root: Span, *, resume: bool = False) -> StoreWriter:
    writer = StoreWriter.open(trace_dir, "box")
    writer.follow(tracer, root, recorder, resume=resume)
    return writer


def read(writer: StoreWriter) -> Trace:
    assert writer.close(10)
    trace = load_store(writer.store)
    assert trace is not None
    assert trace.orphans == []
    return trace


def test_a_recorder_becomes_a_trace(tmp_path: Path, tracer: Tracer) -> None:
    recorder = Recorder()
    recorder.attach(tracer)
    with site.root(tracer, "root") as root:
        with site.span("before"):
            pass
        with site.span("during"):
            writer = recorded(tmp_path, tracer, recorder, root)
            with site.span("inside"):
                pass
        with site.span("after"):
            pass
    trace = read(writer)
    assert {span.name for span in trace.spans} == {"root", "before", "during", "inside", "after"}
    assert {span.name: span.parent.name for span in trace.spans if span.parent} == {
        "before": "root",
        "during": "root",
        "inside": "during",
        "after": "root",
    }
    assert len(recorder) == 0


def test_what_a_recorder_has_dropped_orphans_nobody(tmp_path: Path, tracer: Tracer) -> None:
    recorder = Recorder(capacity=4)
    recorder.attach(tracer)
    root = site.root(tracer, "root")
    assert recorder.since() == 0
    with use(root):
        with site.span("dropped") as dropped:
            early = site.start("outlives its parent")
        for number in range(10):
            with site.span(f"span {number}"):
                pass
        assert recorder.since() > dropped.start
        writer = recorded(tmp_path, tracer, recorder, root)
        with use(early), site.span("late"):
            pass
        with use(dropped), site.span("of the dropped one"):
            pass
    early.finish()
    root.finish()
    trace = read(writer)
    assert {span.name: span.parent.name for span in trace.spans if span.parent} == {
        **{f"span {number}": "root" for number in range(6, 10)},
        "outlives its parent": "root",
        "late": "outlives its parent",
        "of the dropped one": "root",
    }


def test_off_and_on_again_is_the_same_trace(tmp_path: Path, tracer: Tracer) -> None:
    recorder = Recorder()
    recorder.attach(tracer)
    root = site.root(tracer, "root")
    with use(root):
        writer = recorded(tmp_path, tracer, recorder, root)
        with site.span("over the gap"):
            writer.leave(tracer, recorder, Level.NORMAL)
            with site.span("in the gap") as hidden:
                pass
            with site.span("into the trace"):
                writer.follow(tracer, root, recorder, resume=True)
        with use(hidden), site.span("of the gap"):
            pass
    root.finish()
    trace = read(writer)
    assert {span.name: span.parent.name for span in trace.spans if span.parent} == {
        "over the gap": "root",
        "into the trace": "over the gap",
        "of the gap": "root",
    }


def test_off_without_a_recorder(tmp_path: Path, tracer: Tracer) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    root = site.root(tracer, "root")
    writer.follow(tracer, root)
    with use(root):
        writer.leave(tracer, None, Level.OFF)
        with site.span("hidden"):
            pass
    root.finish()
    assert [span.name for span in read(writer).spans] == ["root"]


# Abandoned stores


def test_a_store_whose_writer_died_is_closed(tmp_path: Path, tracer: Tracer) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    root = site.root(tracer, "root")
    writer.follow(tracer, root)
    with use(root):
        parent = site.start("parent")
        with use(parent), site.span("child"):
            pass
    assert writer.flush(10)
    store = writer.store
    assert not close_abandoned(store)  # it lives
    die(writer)
    with store.open_spans.open("a") as file:
        file.write('{"resourceSpans": [{"cut o')
    assert close_abandoned(store)
    assert not close_abandoned(store)
    trace = load_store(store)
    assert trace is not None
    assert (trace.meta.outcome, trace.meta.spans, trace.meta.end > trace.meta.start) == ("killed", 3, True)
    assert {span.name: (span.open, span.failed) for span in trace.spans} == {
        "root": (False, True),
        "parent": (False, True),
        "child": (False, False),
    }
    assert trace.orphans == []
    assert trace.misfits() == []
    assert not store.open_spans.exists()
    for line in store.spans.read_text().splitlines():
        json.loads(line)


def test_a_root_that_was_never_journaled(tmp_path: Path, tracer: Tracer) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    root = site.root(tracer, "rootSpan")
    writer.follow(tracer, root)
    assert writer.flush(10)
    die(writer)
    writer.store.open_spans.unlink()
    assert close_abandoned(writer.store, at=writer.store.meta().start + 5)
    trace = load_store(writer.store)
    assert trace is not None
    assert (trace.root.name, trace.root.failed, trace.root.open, trace.root.service) == (
        "rootSpan",
        True,
        False,
        "kata",
    )
    assert trace.root.duration == 5


def test_a_writer_that_is_just_dying_is_waited_for(tmp_path: Path, tracer: Tracer) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    writer.follow(tracer, site.root(tracer, "root"))
    assert writer.flush(10)
    assert not close_abandoned(writer.store, patience=0.01)
    dying = threading.Timer(0.05, die, (writer,))
    dying.start()
    assert close_abandoned(writer.store, patience=20)
    dying.join()


def test_what_ended_by_itself_is_left_alone(tmp_path: Path) -> None:
    writer = StoreWriter.open(tmp_path, "box")
    writer.close(10, "exit 0")
    assert not close_abandoned(writer.store)
    assert not close_abandoned(Store(tmp_path / "nothing"))


def die(writer: StoreWriter) -> None:
    """As if its process had been killed: the lock goes, and nothing is written any more."""
    writer._lock.release()
    writer._lock = Lock(Path("/nonexistent"))


# Log records


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    levels = [handler.level for handler in before]
    logs.configure("json", "info", tmp_path / "log", source="runtime")
    yield tmp_path / "log"
    logs.on_spans(())
    logs.set_root(None)
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    for handler, was in zip(before, levels, strict=True):
        handler.setLevel(was)
    root.setLevel(level)
    logging.captureWarnings(False)


def test_records_become_events_and_the_log_stays_as_it_was(log: Path, tracer: Tracer) -> None:
    logs.on_spans(["debug", "warning"])
    logger = logging.getLogger("kata.test")
    with site.root(tracer, "root") as root:
        logger.debug("looked at %s", "this")
        logger.info("not wanted")
        logger.warning("mind")
        logging.getLogger("some.library").warning("a library's")
        logging.getLogger("kata.test").error("x" * 5000)
    assert [(event.name, event.attributes["severity"], event.attributes["message"]) for event in root.events] == [
        ("log", "debug", "looked at this"),
        ("log", "warning", "mind"),
    ]
    written = [json.loads(line)["msg"][:10] for line in log.read_text().splitlines()]
    assert written == ["not wanted", "mind", "a library'", "x" * 10]
    logs.on_spans(["error"])
    with site.root(tracer, "root") as root:
        logger.error("x" * 5000)
        logger.debug("no more")
    assert [len(str(event.attributes["message"])) for event in root.events] == [1024]


def test_every_line_has_the_traces_ids(log: Path, tracer: Tracer) -> None:
    root = site.root(tracer, "root")
    logs.set_root(root)
    logging.getLogger("kata.test").info("about nothing in particular")
    with use(root), site.span("inner") as inner:
        logging.getLogger("kata.test").info("about this")
    tracer.level = Level.OFF
    logging.getLogger("kata.test").info("untraced")
    first, second, third = (json.loads(line) for line in log.read_text().splitlines())
    assert (first["trace_id"], first["span_id"]) == (f"{root.context.trace_id:032x}", f"{root.context.span_id:016x}")
    assert (second["trace_id"], second["span_id"]) == (first["trace_id"], f"{inner.context.span_id:016x}")
    with contextlib.suppress(KeyError):
        pytest.fail(third["trace_id"])
