"""The short part of fuzzing, the same in every run: seeds, what was kept, what is much too large or nearly right.

`nox -s fuzz -- --minutes N` is the long part (support.fuzz.session), which looks where inputs lead.
"""

import logging
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.fuzz.corpus import CORPUS, kept
from support.fuzz.counts import DOCUMENT, document
from support.fuzz.findings import FINDINGS
from support.fuzz.odd import Edit, apply, bloated
from support.fuzz.table import TARGETS
from support.fuzz.target import BrokenPromiseError, Target

# Bytes that one input may take while it is parsed, whatever it is (64 KiB long).
MEMORY = 64 << 20
# What the host's processes may grow by in all inputs of a target.
GROWTH = 96 << 20
EDITS = st.lists(
    st.builds(Edit, st.integers(0, 7), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)), min_size=1, max_size=5
)
pytestmark = pytest.mark.slow


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each target; its process may not have grown much afterwards, whatever it parsed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What parsers say of inputs is not looked at here.
    logging.disable(logging.CRITICAL)
    yield TARGETS[request.param]
    logging.disable(logging.NOTSET)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < GROWTH


def test_seeds_are_taken(target: Target) -> None:
    for seed in target.seeds:
        assert target.check(seed)


def test_what_was_kept_and_what_is_too_large(target: Target) -> None:
    """Among it all that ever broke a parser."""
    large = list(bloated(target))
    for data in (*kept(target.name), *large):
        target.check(data)
    for data in large[::5]:
        tracemalloc.start()  # which takes several times as long
        try:
            with suppress(*target.allowed):
                target.parse(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY, f"{len(data)} bytes take {peak >> 20} MiB: {data[:80]!r}"


def test_nearly_right_inputs(target: Target) -> None:
    inputs = [*target.seeds, *kept(target.name)]

    @settings(max_examples=150, derandomize=True, database=None)
    @given(st.sampled_from(inputs), EDITS)
    def tried(data: bytes, edits: list[Edit]) -> None:
        target.check(apply(target, data, edits))

    tried()


def test_a_broken_promise_is_noticed() -> None:
    """The property itself: another error, an error without a word, too much time."""

    def parse(data: bytes) -> None:
        match data:
            case b"other":
                raise KeyError("x")
            case b"mute":
                raise ValueError
            case b"slow":
                sum(range(3_000_000))
            case b"refused":
                raise ValueError("no")

    target = Target("t", "f", parse, (b"",), (ValueError,), seconds=0.01)
    assert target.check(b"")
    assert not target.check(b"refused")
    for data in (b"other", b"mute", b"slow"):
        with pytest.raises(BrokenPromiseError):
            target.check(data)


def test_corpora_and_findings_are_of_targets() -> None:
    assert {path.stem for path in CORPUS.glob("*.txt")} <= set(TARGETS)
    for finding in FINDINGS:
        assert kept(finding.target), f"no input of {finding.target} is kept"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(), "run: nox -s fuzz -- --record --minutes 0.1 --only duration"
