"""The agent's log lines in the host's log."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.guest.agent_log import BURST, AgentLog, parse
from kata_telemetry.logs import Formatter
from kata_telemetry.span import Level, Site, Tracer

site = Site(package="p", subsystem="s")


@pytest.fixture
def tracer() -> Tracer:
    return Tracer("kata", lambda _: None, common={"sandbox_id": "box"})


@pytest.fixture
def written() -> Iterator[Callable[[], list[dict[str, object]]]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter("json", "runtime"))
    logger = logging.getLogger("kata.agent")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def agent_line(**extra: object) -> str:
    """A line as the agent's own log makes it."""
    record = logging.makeLogRecord({"name": "kata.agent", "levelno": 30, "levelname": "WARNING", "msg": "odd", **extra})
    return Formatter("logfmt", "agent").format(record)


def test_a_line_of_the_agents_becomes_a_record(tracer: Tracer, written: Callable[[], list[dict[str, object]]]) -> None:
    root = site.root(tracer, "root")
    ours = f"{root.context.trace_id:032x}"
    log = AgentLog("box", root)
    log.line(agent_line(msg='a "quoted" word\\', container="c1", trace_id=ours, span_id="ab" * 8, pid=4))
    log.line(agent_line(trace_id="cd" * 16, span_id="ab" * 8, sandbox="another"))
    log.line("[    1.0] Linux version 6.1")
    log.line("kata-agent: ready")
    first, second = written()
    assert (first["msg"], first["level"], first["name"]) == ('a "quoted" word\\', "warning", "kata.agent")
    assert (first["sandbox"], first["container"], first["source"]) == ("box", "c1", "runtime")
    assert (first["trace_id"], first["span_id"]) == (ours, "ab" * 8)
    assert "pid" not in first
    assert second["sandbox"] == "box"
    assert second.get("span_id") != "ab" * 8  # it names a trace that is not its sandbox's


def test_ids_are_left_out_where_there_is_no_trace(
    tracer: Tracer, written: Callable[[], list[dict[str, object]]]
) -> None:
    root = site.root(tracer, "root")
    tracer.level = Level.OFF
    AgentLog("box", root).line(agent_line(trace_id=f"{root.context.trace_id:032x}", span_id="ab" * 8))
    assert "span_id" not in written()[0]


def test_a_flood_is_bounded_and_counted(tracer: Tracer, written: Callable[[], list[dict[str, object]]]) -> None:
    now = 0.0
    log = AgentLog("box", site.root(tracer, "root"), clock=lambda: now)
    for _ in range(10 * BURST):
        log.line(agent_line())
    assert len(written()) == BURST
    now = 1.0
    log.line(agent_line())
    assert written()[-1]["dropped"] == 9 * BURST


@given(st.text(max_size=1024))
def test_any_line_of_a_guest_is_one_line_or_none(text: str) -> None:
    for line in (text, f"time=1 source=agent msg={text}", f'time=1 source=agent msg="{text}" level={text}'):
        fields = parse(line)
        assert fields is None or all(len(value) <= 1024 for value in fields.values())


def test_a_line_that_goes_back_and_forth_takes_no_time() -> None:
    parse("time=" + '"' * 1000)
    parse("time=1 " + "a=" * 500)
    parse('time=1 a="' + "\\" * 1000)
