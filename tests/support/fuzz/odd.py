"""Inputs that are nearly right: a seed with a few edits. Pure, so that both engines can use it.

`apply` is the whole of it: hypothesis draws the edits (and makes them fewer when one fails), atheris's mutator rolls.
"""

import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

from support.fuzz.target import LARGEST, Shape, Target

__all__ = ["ODD_VALUES", "Edit", "apply", "bloated", "rolled"]

# What JSON can hold and programs forget.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, 1e308, -0.0),
    *(
        "",
        " ",
        "0",
        "-1",
        "/",
        "..",
        ":",
        "\0",
        "\ud800",
        "\u202e",
        "\x1b[31m",
        "é",
        "²",
        "٣",
        "max",
        "NaN",
        "=",
        "a=b",
    ),
    *([], {}, [[]], [None], [0], [""], [{}], {"": None}, {"a": {}}, {"path": 1}, "x" * 5000, "9" * 400),
)
_TOKENS = (
    *(
        b"\0",
        b"\n",
        b"\r\n",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\x80\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
    ),
    *(
        b"0",
        b"-1",
        b"999999999999999999999",
        b"1e999",
        b"NaN",
        b"\xc2\xb2",
        b"\xd9\xa3",
        b" ",
        b"\t",
        b":",
        b"=",
        b",",
        b'"',
    ),
    *(b"\\", b"/", b"../", b"%", b"{", b"}", b"[", b"]", b"'", b"-", b"\x1b[2J", b"\x01\0\0\0\0\0\0\0"),
)


class Edit(NamedTuple):
    """One change: which kind, where (taken modulo what there is), and with which odd thing."""

    kind: int
    where: int
    what: int


def rolled(random: Random) -> list[Edit]:
    """Edits by chance."""
    return [
        Edit(random.randrange(8), random.randrange(1 << 16), random.randrange(1 << 16))
        for _ in range(random.choice((1, 1, 2, 3, 5)))
    ]


def apply(target: Target, data: bytes, edits: Sequence[Edit]) -> bytes:
    """`data` with these changes, by the target's shape; at most LARGEST bytes."""
    if target.shape is Shape.JSON:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if document is not None:
            for edit in edits:
                document = _edited(document, edit, target)
            return json.dumps(document).encode()[:LARGEST]
    for edit in edits:
        data = _spliced(data, edit, target)
    return data[:LARGEST]


def _spliced(data: bytes, edit: Edit, target: Target) -> bytes:  # noqa: PLR0911 - a table of edits
    tokens = (*_TOKENS, *target.words)
    token = tokens[edit.what % len(tokens)]
    at = edit.where % (len(data) + 1)
    match edit.kind % 8:
        case 0:
            return data[:at] + token + data[at:]
        case 1:
            return data[:at] + token + data[at + len(token) :]
        case 2:
            return data[:at] + data[at + 1 + edit.what % 16 :]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[at : at + 1 + edit.what % 64] * 2 + data[at + 1 + edit.what % 64 :]
        case 5:
            other = target.seeds[edit.what % len(target.seeds)]
            return data[:at] + other[edit.where % (len(other) + 1) :]
        case 6:
            return data[:at] + bytes([edit.what & 0xFF]) + data[at + 1 :]
        case _:
            return data[:at] + token * (1 + edit.what % 300) + data[at:]


def _nodes(document: Any) -> list[tuple[Any, Any]]:
    """Every place in it: the container and the key."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        here = pending.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            found.append((here, key))
            pending.append(here[key])
    return found


def _edited(document: Any, edit: Edit, target: Target) -> Any:
    odd = [*ODD_VALUES, *(word.decode(errors="surrogateescape") for word in target.words)]
    value = odd[edit.what % len(odd)]
    nodes = _nodes(document)
    if not nodes:
        return value
    here, key = nodes[edit.where % len(nodes)]
    other, place = nodes[edit.what % len(nodes)]
    match edit.kind % 8:
        case 0:
            del here[key]
        case 1 if isinstance(here, dict):
            here[str(value)] = here.pop(key)
        case 2 if isinstance(here, list):
            here.insert(key, json.loads(json.dumps(here[key])))
        case 3:
            here[key] = [here[key]]
        case 4:
            here[key] = json.loads(json.dumps(other[place]))
        case 5:
            here[key] = str(here[key])
        case _:
            here[key] = json.loads(json.dumps(value))
    return document


def bloated(target: Target) -> Iterator[bytes]:
    """Inputs that cost more than they should where something is quadratic, or recurses."""
    yield from (b"", b"[" * 50_000, b'{"a":' * 12_000, b"9" * 10_000, b"(" * 20_000, b"a" * LARGEST, b"\n" * LARGEST)
    for seed in target.seeds[:3]:
        yield (seed * (LARGEST // max(len(seed), 1) + 1))[:LARGEST]
        if target.shape is Shape.JSON:
            yield from _bloated_json(json.loads(seed))
        else:
            for word in target.words[:20]:
                yield seed + word * (LARGEST // 2 // max(len(word), 1))
                yield word * (LARGEST // 2 // max(len(word), 1)) + seed


def _bloated_json(document: Any) -> Iterator[bytes]:
    deep = b"[" * 20_000 + b"]" * 20_000
    marked = "@bloat@"
    for number in range(min(len(_nodes(document)), 6)):
        copy = json.loads(json.dumps(document))
        here, key = _nodes(copy)[number]
        kept, here[key] = here[key], marked
        text = json.dumps(copy).encode()
        place = json.dumps(marked).encode()
        for big in (deep, b"9" * 4000, b'"' + b"x" * LARGEST + b'"', json.dumps([kept] * 500).encode()):
            yield text.replace(place, big)
