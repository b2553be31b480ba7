"""The table of config.json's fields: whatever stands in one is applied, refused or noted, and never lost on the way."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_runtime.errors import RootfsError
from kata_runtime.oci.fields import CONFIG, Handling, Rule, examine, rows
from kata_runtime.oci.resources import guest_resources
from kata_runtime.oci.spec import for_guest, guest_process

ROWS = dict(rows())
# What `for_guest` needs before it looks at anything else.
LEAST: dict[str, Any] = {
    "process": {"args": ["sh"], "cwd": "/"},
    "root": {"path": "/r"},
    "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]},
}


def at(path: str, value: object) -> dict[str, Any]:
    """A value at the place that a row of the table names."""
    for name in reversed(re.findall(r"[^.\[\]]+|\[\]", path)):
        value = [value] if name == "[]" else {"any" if name == "*" else name: value}
    assert isinstance(value, dict)
    return value


def rows_of(handling: Handling) -> list[str]:
    return [path for path, rule in ROWS.items() if rule.handling is handling]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    result = dict(one)
    for name, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result


def test_every_row_says_something() -> None:
    assert [path for path, rule in ROWS.items() if not rule.says] == []
    assert {rule.handling for rule in ROWS.values()} == set(Handling)


@pytest.mark.parametrize("path", rows_of(Handling.APPLIED))
def test_applied(path: str) -> None:
    kept = examine(at(path, 7), CONFIG)
    assert kept.value == at(path, 7)
    assert kept.notes == ()


@pytest.mark.parametrize("path", rows_of(Handling.NOTED))
def test_noted(path: str) -> None:
    kept = examine(at(path, "asked"), CONFIG)
    assert "asked" not in str(kept.value)
    [note] = kept.notes
    assert note.startswith(path.replace("[]", "[0]").replace("*", "any").rpartition(".")[0])
    assert ROWS[path].says in note
    empty: list[object] = [None, "", 0, False, [], {}]
    for nothing in empty:
        assert examine(at(path, nothing), CONFIG).notes == ()


@pytest.mark.parametrize("path", rows_of(Handling.REFUSED))
def test_refused(path: str) -> None:
    with pytest.raises(RootfsError) as caught:
        for_guest(merged(LEAST, at(path, "asked")), rootfs="/r", mounts="/m")
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert "can't be had in a VM" in message
    assert ROWS[path].says in message
    field = message.partition(" ")[0]
    assert path.replace("[]", "[0]").replace("*", "any").startswith(field)


def test_all_that_is_refused_is_said_at_once() -> None:
    asked = {
        "linux": {
            "intelRdt": {"closID": "x"},
            "netDevices": {"eth1": {}},
            "resources": {"rdma": {"m": {"hcaHandles": 1}}},
        }
    }
    with pytest.raises(RootfsError) as caught:
        examine(asked, CONFIG)
    parts = str(caught.value).split("; ")
    assert [part.partition(" ")[0] for part in parts if "can't be had" in part] == [
        "linux.intelRdt",
        "linux.netDevices.eth1",
        "linux.resources.rdma.m",
    ]


@pytest.mark.parametrize("nothing", [None, "", 0, False, [], {}])
def test_who_asks_for_nothing_is_refused_nothing(nothing: object) -> None:
    for path in rows_of(Handling.REFUSED):
        if not ROWS[path].always and "[]" not in path:
            examine(at(path, nothing), CONFIG)


@pytest.mark.parametrize("place", ["", "process", "linux", "linux.resources", "linux.resources.cpu", "mounts[]"])
def test_unknown_names_are_noted(place: str) -> None:
    path = f"{place}.newField" if place else "newField"
    kept = examine(at(path, {"x": 1}), CONFIG)
    assert kept.notes == (f"{path.replace('[]', '[0]')}: no field of the OCI runtime specification 1.3",)
    assert "newField" not in str(kept.value)


def test_calls_for_a_process_and_for_limits_keep_the_rule() -> None:
    process, notes = guest_process({"args": ["sh"], "cwd": "/", "apparmorProfile": "x", "new": 1})
    assert process == {"args": ["sh"], "cwd": "/"}
    assert [note.partition(":")[0] for note in notes] == ["process.apparmorProfile", "process.new"]
    with pytest.raises(RootfsError, match=r"resources\.memory\.disableOOMKiller can't be had"):
        guest_resources({"memory": {"disableOOMKiller": True}})
    assert "devices" not in guest_resources({"cpu": {"shares": 5}}).value


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"cpu": {"cpus": "0-"}}, "resources.cpu.cpus: '0-' is no list of CPUs"),
        ({"cpu": {"cpus": "a"}}, "resources.cpu.cpus: 'a' is no list of CPUs"),
        ({"unified": {"cpuset.cpus": "1,"}}, "resources.unified.cpuset.cpus: '1,' is no list"),
        ({"unified": {"rdma.max": "x"}}, "resources.unified.rdma.max can't be had in a VM"),
        ({"unified": {"cgroup.procs": "1"}}, "resources.unified.cgroup.procs can't be had"),
        ({"unified": {"../cpu.max": "1"}}, "resources.unified.../cpu.max can't be had"),
        ({"unified": {"io.max": "8:0 rbps=1"}}, "resources.unified.io.max can't be had in a VM: '8:0 rbps=1' names"),
        ({"unified": {"cpu.max": 1}}, "resources.unified.cpu.max: expected a string"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}},
            "throttleReadBpsDevice can't be",
        ),
        ({"cpu": {"realtimeRuntime": 5}}, "resources.cpu.realtimeRuntime can't be had"),
        ({"network": {"classID": 5}}, "resources.network.classID can't be had"),
    ],
)
def test_limits_that_a_guest_cannot_hold(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        guest_resources(resources)
    assert said in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60)
@given(st.sampled_from(sorted(ROWS)), VALUES)
def test_whatever_stands_there_is_applied_noted_or_refused(path: str, value: object) -> None:
    """Also of a type that the table does not expect: nothing vanishes."""
    asked = at(path, value)
    try:
        kept = examine(asked, CONFIG)
    except RootfsError:
        return
    if value and ROWS[path].handling is Handling.APPLIED:
        assert kept.value == asked or kept.notes


def test_rules_are_values() -> None:
    assert Rule(Handling.NOTED, "x") == Rule(Handling.NOTED, "x")
