"""CPUs, huge pages and scheduling in the guest's own terms."""

import os
import struct
from typing import Any

import pytest

from kata_agent.container.limits import Guest, fit_resources, map_cpus, parse_cpus
from kata_agent.container.placement import NOWHERE, Placement, take_placement
from kata_agent.errors import InvalidError

GUEST = Guest(frozenset({0, 1, 2}), frozenset({"2MB"}))


@pytest.mark.parametrize(
    ("named", "cpus"),
    [
        ("0", {0}),
        ("1-2", {1, 2}),
        ("0-2", {0, 1, 2}),
        ("4-5", {0, 1}),
        ("2,7", {0, 1}),
        ("0-63", {0, 1, 2}),
        (" 1 ", {1}),
    ],
)
def test_cpus_of_a_host_are_as_many_of_the_guests(named: str, cpus: set[int]) -> None:
    assert map_cpus(named, "x", GUEST.cpus) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "0-99999999", "1,,2"])
def test_no_list_of_cpus(text: str) -> None:
    with pytest.raises(InvalidError, match=r"x: .* is no list of CPUs"):
        parse_cpus(text, "x")


def test_limits_fit_the_guest() -> None:
    resources: dict[str, Any] = {
        "cpu": {"cpus": "8-9", "shares": 5},
        "unified": {"cpuset.cpus": "2"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 5}, {"pageSize": "1GB", "limit": 0}],
    }
    fit_resources(resources, GUEST)
    assert resources == {
        "cpu": {"cpus": "0,1", "shares": 5},
        "unified": {"cpuset.cpus": "2"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
    }


def test_pages_that_the_guest_lacks_are_refused() -> None:
    with pytest.raises(InvalidError, match="the guest has no pages of '1GB'; it has 2MB"):
        fit_resources({"hugepageLimits": [{"pageSize": "1GB", "limit": 1}]}, GUEST)


def test_this_machine() -> None:
    found = Guest.look()
    assert os.sched_getaffinity(0) <= found.cpus
    assert all(size.endswith("B") for size in found.hugepages)


def test_a_process_that_asks_for_nothing_is_placed_nowhere() -> None:
    process: dict[str, Any] = {"args": ["sh"], "scheduler": None}
    assert take_placement(process, GUEST.cpus) == NOWHERE
    assert process == {"args": ["sh"]}


def test_placement() -> None:
    process: dict[str, Any] = {
        "scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3, "nice": -4},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        "execCPUAffinity": {"initial": "0", "final": "1-2"},
    }
    placement = take_placement(process, GUEST.cpus)
    assert process == {}
    # struct sched_attr of linux/sched/types.h.
    assert placement.attributes is not None
    assert struct.unpack("=IIQiIQQQ", placement.attributes) == (48, 6, 0, -4, 0, 1, 2, 3)
    assert placement.io_priority == 2 << 13 | 6
    assert (set(placement.first_cpus), set(placement.cpus)) == ({0}, {1, 2})
    assert not placement.inherited


@pytest.mark.parametrize(
    ("scheduler", "inherited"),
    [
        ({"policy": "SCHED_FIFO", "priority": 5}, True),
        ({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, False),
    ],
)
def test_what_a_child_has_of_its_parent(scheduler: dict[str, Any], inherited: bool) -> None:
    assert take_placement({"scheduler": scheduler}, GUEST.cpus).inherited is inherited


def test_an_exec_has_its_containers_cpus_unless_it_says_others() -> None:
    container = Placement(cpus=frozenset({1}), first_cpus=frozenset({0}), io_priority=3)
    assert NOWHERE.on(container) == Placement(cpus=frozenset({1}), first_cpus=frozenset({0}))
    own = Placement(cpus=frozenset({2}))
    assert own.on(container) == own


@pytest.mark.parametrize(
    ("process", "said"),
    [
        ({"scheduler": {"policy": "FIFO"}}, "process.scheduler.policy: 'FIFO' is none of SCHED_OTHER"),
        ({"scheduler": {"policy": "SCHED_RR", "flags": ["x"]}}, "process.scheduler.flags: 'x' is none of"),
        ({"scheduler": {"policy": "SCHED_RR", "priority": -1}}, "a number is out of range"),
        ({"scheduler": {"policy": "SCHED_RR", "nice": "1"}}, "are integers"),
        ({"scheduler": []}, "process.scheduler is not an object"),
        ({"ioPriority": {"class": "x"}}, "process.ioPriority.class: 'x' is none of"),
        ({"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 8}}, "is not a number from 0 to 7"),
        ({"execCPUAffinity": {"final": "x"}}, "process.execCPUAffinity.final: 'x' is no list"),
    ],
)
def test_bad_placements(process: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        take_placement(process, GUEST.cpus)
    assert said in str(caught.value)
