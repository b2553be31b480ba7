"""Structured logs."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_telemetry.logs import Flood, Formatter, configure, log_fields
from kata_telemetry.span import Site, Tracer

site = Site(package="test", subsystem="unit")
# name=value, where a value is bare or quoted.
PAIR = re.compile(r'([A-Za-z0-9_.-]+)=("(?:[^"\\]|\\.)*"|[^ "=]+)')


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.level, logging.raiseExceptions
    target = io.StringIO()
    yield target
    for handler in [old for old in root.handlers if isinstance(old.formatter, Formatter)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(before[0])
    logging.raiseExceptions = before[1]
    logging.captureWarnings(False)


def pairs(line: str) -> dict[str, str]:
    return dict(PAIR.findall(line))


def test_logfmt_has_the_ids_of_the_current_span(stream: io.StringIO) -> None:
    configure("logfmt", "info", stream, source="runtime")
    tracer = Tracer("kata", lambda _: None, common={"sandbox_id": "s1"})
    with site.root(tracer, "rootSpan", container_id="c1") as span, log_fields(pod="web", sandbox="not this"):
        logging.getLogger("kata.qemu").info("QEMU %s", "runs", extra={"pid": 7})
        logging.getLogger("kata.qemu").debug("not shown")
    (line,) = stream.getvalue().splitlines()
    fields = pairs(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", fields.pop("time"))
    assert fields == {
        "level": "info",
        "source": "runtime",
        "name": "kata.qemu",
        "msg": '"QEMU runs"',
        "sandbox": "s1",
        "container": "c1",
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "pod": "web",
        "pid": "7",
    }


def test_json_to_a_file(stream: io.StringIO, tmp_path: Path) -> None:
    configure("logfmt", "error", stream, source="runtime")
    configure("json", "trace", tmp_path / "log", source="agent")
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        logging.getLogger("kata").exception("it failed", extra={"ratio": float("nan"), "count": 3})
    logging.getLogger("kata").log(5, "detail")
    first, second = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (first["level"], first["source"], first["count"], first["ratio"]) == ("error", "agent", 3, "nan")
    assert first["error"] == "ValueError: bad\nvalue"
    assert "Traceback" in first["traceback"]
    assert second["level"] == "trace"
    assert stream.getvalue() == ""


def test_a_wrong_format_string_loses_nothing(stream: io.StringIO) -> None:
    configure("logfmt", "info", stream, source="runtime")
    logging.getLogger("kata").info("%d of %s", "x")  # noqa: PLE1206
    assert "%d of %s" in stream.getvalue()


def test_long_texts_are_cut(stream: io.StringIO) -> None:
    configure("logfmt", "info", stream, source="runtime")
    logging.getLogger("kata").info("x" * 100_000)
    assert len(stream.getvalue()) < 9000


@pytest.mark.parametrize(("style", "level"), [("xml", "info"), ("json", "loud")])
def test_unknown_settings(style: str, level: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        configure(style, level, io.StringIO(), source="runtime")


@given(st.text())
def test_no_message_breaks_a_line(text: str) -> None:
    record = logging.makeLogRecord({"name": "kata", "msg": text, "levelname": "INFO"})
    line = Formatter("logfmt", "agent").format(record)
    assert line.isprintable()
    assert set(pairs(line)) == {"time", "level", "source", "name", "msg"}
    assert PAIR.sub("", line).strip() == ""
    content = Formatter("json", "agent").format(record)
    assert content.isprintable()
    assert json.loads(content)["msg"] == text


def test_a_place_that_is_made_to_talk_without_end() -> None:
    now = 0.0
    flood = Flood(burst=3, rate=1.0, clock=lambda: now)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter("json", "forwarder"))
    handler.addFilter(flood)
    logger = logging.Logger("kata.flood")
    logger.addHandler(handler)

    def talk(count: int) -> None:
        for number in range(count):
            logger.warning("here it is: %d", number)

    talk(100)
    logger.warning("another place")
    now = 2.0
    talk(1)
    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["msg"] for record in written] == [
        *(f"here it is: {n}" for n in range(3)),
        "another place",
        "here it is: 0",
    ]
    assert [record.get("dropped", 0) for record in written] == [0, 0, 0, 0, 97]
