"""W3C Trace Context to the letter: what a peer's headers come to, and what goes on from here.

The cases are those that w3c/trace-context's own harness has (its test/test.py), and their siblings.
"""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_telemetry.propagation import extract, inject
from kata_telemetry.span import Site, SpanContext, Tracer
from kata_telemetry.w3c import MAX_MEMBERS, MAX_STATE, tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
site = Site(package="test", subsystem="unit")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT + "-extra",
        PARENT + "-",
        PARENT + ".",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01-later",
        f"FF-{TRACE}-{SPAN}-01",
        f".0-{TRACE}-{SPAN}-01",
        f"0.-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.later",
        f"cc-{TRACE}-{SPAN}-011",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-.{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN[1:]}.-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}-.0",
        f"00-{TRACE}-{SPAN}-0.",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0A",
        f"00 -{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"\u00a0{PARENT}",
        f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
        f"{PARENT},{PARENT}",
    ],
)
def test_invalid_parents_are_none(text: str) -> None:
    assert extract([("traceparent", text), ("tracestate", "a=1")]) is None


@pytest.mark.parametrize(
    "text",
    [
        f" {PARENT}",
        f"\t{PARENT}",
        f"{PARENT} ",
        f"{PARENT}\t",
        f"\t {PARENT} \t",
        f"cc{PARENT[2:]}",
        f"01{PARENT[2:]}-x",
    ],
)
def test_valid_parents(text: str) -> None:
    assert extract([("traceparent", text)]) == SpanContext(int(TRACE, 16), int(SPAN, 16), 1)


@pytest.mark.parametrize("name", ["traceparent", "TraceParent", "TrAcEpArEnT", "TRACEPARENT"])
def test_names_in_any_case(name: str) -> None:
    parent = extract([(name, PARENT), (f"{name[:5]}StaTE", "a=1")])
    assert parent is not None
    assert parent.state == "a=1"


@pytest.mark.parametrize("name", ["trace-parent", "trace.parent", "traceparent ", ""])
def test_other_names_say_nothing(name: str) -> None:
    assert extract([(name, PARENT)]) is None


@pytest.mark.parametrize(
    "twice", [(PARENT, PARENT), (PARENT, PARENT.replace("0af", "1af")), (PARENT, ""), ("", PARENT)]
)
def test_two_parents_are_as_good_as_none(twice: tuple[str, str]) -> None:
    assert extract([("traceparent", text) for text in twice]) is None


@pytest.mark.parametrize(
    ("version", "flags", "onwards"),
    [
        ("00", "00", "00"),
        ("00", "01", "01"),
        ("00", "02", "02"),  # level 2: the trace id is random, which all who come later may rely on
        ("00", "03", "03"),
        ("00", "ff", "03"),
        ("00", "fc", "00"),
        ("00", "09", "01"),
        ("cc", "ff", "03"),
    ],
)
def test_flags_that_nobody_knows_end_here(version: str, flags: str, onwards: str) -> None:
    tracer = Tracer("kata", lambda _: None)
    with site.root(tracer, "root", parent=extract([("traceparent", f"{version}-{TRACE}-{SPAN}-{flags}")])) as span:
        sent = dict(inject())["traceparent"]
    assert sent == f"00-{TRACE}-{span.context.span_id:016x}-{onwards}"


KEY = string.ascii_lowercase + string.digits + "_-*/"
VALUE = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) not in ",=")
MANY = [f"bar{number:02}={number:02}" for number in range(1, MAX_MEMBERS + 2)]


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        ([""], ""),
        (["foo=1", ""], "foo=1"),
        (["", "foo=1"], "foo=1"),
        (["foo=1,,,bar=2,"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], "foo=1,bar=2,baz=3"),
        ([" foo=1"], "foo=1"),
        (["\tfoo=1"], "foo=1"),
        (["foo=1 "], "foo=1"),
        (["foo=1\t"], "foo=1"),
        (["foo= 1"], "foo= 1"),  # a value may begin with a blank
        ([f"{KEY}={VALUE}"], f"{KEY}={VALUE}"),
        ([f"{KEY}@a-z0-9_-*/={VALUE}"], f"{KEY}@a-z0-9_-*/={VALUE}"),
        (["0key=1"], "0key=1"),
        (["foo@=1,bar=2"], "foo@=1,bar=2"),
        # Duplicates: one of them stays (the harness's test_tracestate_duplicated_keys).
        (["foo=1,foo=1"], "foo=1"),
        (["foo=1,foo=2"], "foo=1"),
        (["foo=1", "foo=2"], "foo=1"),
        (MANY[:-1], ",".join(MANY[:-1])),
        (["foo=1", "z" * 256 + "=1"], "foo=1," + "z" * 256 + "=1"),
        (["foo=1", "t" * 241 + "@" + "v" * 14 + "=1"], "foo=1," + "t" * 241 + "@" + "v" * 14 + "=1"),
        (["foo=" + "v" * 256], "foo=" + "v" * 256),
        # Not one of these is passed on, nor what stands beside it.
        (["foo =1,bar=2"], ""),
        (["foo\t=1"], ""),
        (["FOO=1,bar=2"], ""),
        (["foO=1"], ""),
        (["foo.bar=1"], ""),
        (["_foo=1"], ""),
        (["@foo=1,bar=2"], ""),
        (["foo@@bar=1,bar=2"], ""),
        (["foo@bar@baz=1,bar=2"], ""),
        (["foo=bar=baz"], ""),
        (["foo=,bar=3"], ""),
        (["foo"], ""),
        (["=1"], ""),
        (["foo=\x1b[0m"], ""),
        (["foo=é"], ""),
        (["é=1"], ""),
        (["foo=a\tb"], ""),
        (["foo=1;bar=2\n"], ""),
        (MANY, ""),
        ([",".join(MANY)], ""),
        (["foo=1"] * (MAX_MEMBERS + 1), ""),
        (["foo=1", "z" * 257 + "=1"], ""),
        (["foo=1", "t" * 255 + "@v=1"], ""),
        (["foo=" + "v" * 257], ""),
    ],
)
def test_states(headers: list[str], state: str) -> None:
    """Whatever it is, the trace goes on."""
    parent = extract([("traceparent", PARENT), *(("tracestate", header) for header in headers)])
    assert parent == SpanContext(int(TRACE, 16), int(SPAN, 16), 1, state)


def test_a_state_without_a_parent_is_nothing() -> None:
    assert extract([("tracestate", "foo=1")]) is None


@pytest.mark.parametrize("name", ["trace-state", "trace.state"])
def test_other_names_of_a_state(name: str) -> None:
    parent = extract([("traceparent", PARENT), (name, "foo=1")])
    assert parent is not None
    assert parent.state == ""


def test_what_is_too_long_loses_whole_members() -> None:
    """First those over 128 characters, then from the end (3.3.1.5)."""
    large, small = "large=" + "v" * 200, [f"k{number:02}=" + "v" * 40 for number in range(12)]
    kept = tracestate([",".join([large, *small])])
    assert kept == ",".join(small[:11])
    assert len(kept) <= MAX_STATE
    assert tracestate([",".join([small[0], large, small[1]])]) == ",".join([small[0], large, small[1]])
    assert tracestate([f"{'k' * 256}={'v' * 256}"]) == ""


def test_the_state_goes_on_with_the_span() -> None:
    tracer = Tracer("kata", lambda _: None)
    parent = extract([("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")])
    with site.root(tracer, "root", parent=parent), site.span("inner"):
        assert dict(inject())["tracestate"] == "a=1,b=2"


@given(st.lists(st.text() | st.text("ab=@,\t A*", max_size=30), max_size=3))
def test_what_is_passed_on_is_valid(headers: list[str]) -> None:
    kept = tracestate(headers)
    assert tracestate([kept]) == kept


@given(st.text() | st.text("0af-", max_size=60))
def test_a_parent_that_is_taken_is_passed_on_as_it_is(text: str) -> None:
    parent = SpanContext.from_traceparent(text)
    assert parent is None or SpanContext.from_traceparent(parent.to_traceparent()) == parent
