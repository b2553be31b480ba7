"""Framing, against the protocol's description, against what containerd sent, and against nonsense."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_runtime.shim.ttrpc.frames import (
    DATA,
    MAX_DATA,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    Oversized,
    encode,
)

EXAMPLES = [
    (Frame(1, REQUEST, 0, b""), "00000000 00000001 01 00"),
    (Frame(3, REQUEST, REMOTE_OPEN, b"ab"), "00000002 00000003 01 02 6162"),
    (Frame(3, REQUEST, REMOTE_CLOSED, b"ab"), "00000002 00000003 01 01 6162"),
    (Frame(0x01020305, RESPONSE, 0, b"\0"), "00000001 01020305 02 00 00"),
    (Frame(5, DATA, REMOTE_CLOSED | NO_DATA, b""), "00000000 00000005 03 05"),
    (Frame(0xFFFFFFFF, 0x7F, 0xFF, b"?"), "00000001 ffffffff 7f ff 3f"),
]

frame_lists = st.lists(
    st.builds(
        Frame,
        stream=st.integers(0, 0xFFFFFFFF),
        kind=st.integers(0, 255),
        flags=st.integers(0, 255),
        data=st.binary(max_size=64),
    ),
    max_size=8,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(("frame", "text"), EXAMPLES)
def test_example(frame: Frame, text: str) -> None:
    data = bytes.fromhex(text)
    assert encode(frame) == data
    assert Decoder().feed(data) == [frame]


def test_largest_message_passes_and_a_larger_one_is_refused() -> None:
    largest = Frame(1, DATA, 0, bytes(MAX_DATA))
    assert Decoder().feed(encode(largest)) == [largest]
    with pytest.raises(ValueError, match="exceeds ttrpc's limit"):
        encode(Frame(1, DATA, 0, bytes(MAX_DATA + 1)))


def test_oversized_frame_is_reported_at_its_header_and_skipped() -> None:
    decoder = Decoder()
    header = bytes.fromhex("00400001 00000007 01 00")
    assert decoder.feed(header) == [Oversized(7, REQUEST, 0, MAX_DATA + 1)]
    assert decoder.partial
    for _ in range(4):
        assert decoder.feed(bytes(1 << 20)) == []
    after = Frame(9, REQUEST, 0, b"x")
    assert decoder.feed(b"\0" + encode(after)) == [after]
    assert not decoder.partial


def test_half_a_frame_is_known_as_such() -> None:
    decoder = Decoder()
    assert not decoder.partial
    assert decoder.feed(bytes.fromhex("00000002 00000003 01 02 61")) == []
    assert decoder.partial


@given(frame_lists, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_frames_survive_any_cut(frames: list[Frame], places: list[int]) -> None:
    decoder = Decoder()
    data = b"".join(map(encode, frames))
    assert [frame for part in cut(data, places) for frame in decoder.feed(part)] == frames
    assert not decoder.partial


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=12))
def test_any_bytes_decode_the_same_wherever_they_are_cut(data: bytes, places: list[int]) -> None:
    whole, pieces = Decoder(), Decoder()
    assert [found for part in cut(data, places) for found in pieces.feed(part)] == whole.feed(data)
    assert whole.partial == pieces.partial
