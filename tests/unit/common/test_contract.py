"""What host and guest agree on is written once, and says of every call how it is traced."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_common.contract import CLOCK_ANSWER, CLOCK_QUESTION, RPCS, Level, Port, Rpc, snake_case
from kata_protos import agent_pb2 as pb

ROOT = Path(__file__).parents[3]
# Requests that are not called after their call; the runtime makes no span for these two.
OTHER_REQUESTS = {"Check": "CheckRequest", "Version": "CheckRequest", "GetGuestDetails": "GuestDetailsRequest"}


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("runtime", "agent", "telemetry"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()


def test_every_call_has_its_row() -> None:
    services = pb.DESCRIPTOR.services_by_name.values()
    methods = {method.name: method.input_type.name for service in services for method in service.methods}
    assert set(RPCS) == set(methods)
    # By it the runtime finds the row.
    assert {name: f"{name}Request" for name in methods} | OTHER_REQUESTS == methods


def test_what_is_asked_again_and_again_leaves_no_trace() -> None:
    silent = {name for name, rpc in RPCS.items() if rpc.level is None}
    assert silent == {"Check", "Version", "GetOOMEvent", "StreamSpans", "SetGuestDateTime", "ForgetSandbox"}
    assert {name for name, rpc in RPCS.items() if rpc.repeats} == {
        *("StatsContainer", "ListProcesses", "GetMetrics", "CopyFile", "GetVolumeStats"),
    }
    assert Rpc() == (Level.NORMAL, False)


@pytest.mark.parametrize(
    ("method", "name"),
    [("Check", "check"), ("CreateContainer", "create_container"), ("GetOOMEvent", "get_oom_event"),
     ("CloseIO", "close_io"), ("AddARPNeighbors", "add_arp_neighbors"), ("Wait4Exit", "wait4_exit"),
     ("PullV2Image", "pull_v2_image"), ("ResizePty", "resize_pty"), ("State", "state")],
)  # fmt: skip
def test_snake_case(method: str, name: str) -> None:
    assert snake_case(method) == name


def test_no_other_module_has_words_of_the_contract() -> None:
    """Marks, kinds of errors and a way to write names of methods."""
    words = ("kata: initramfs", "kata: agent", "kata-agent: ", "kata-error", "command-not-", "(?=[A-Z][a-z])")
    found = [(path, word) for path, text in sources() for word in words if word in text]
    assert found == []


def test_no_other_module_has_a_number_of_a_port() -> None:
    ours = {int(port) for port in Port} - {1024}
    found = []
    for path, text in sources():
        for number, line in enumerate(text.splitlines(), 1):
            code = line.partition("#")[0]
            if ours & {int(word) for word in re.findall(r"\b\d{4,5}\b", code)} or re.search(r"PORT\b.*=\s*\d+$", code):
                found.append((path, number, line))
    assert found == []


def test_the_clocks_bytes() -> None:
    """docs/architecture.md: 8 in, 24 out, big-endian."""
    assert CLOCK_QUESTION.size == 8
    assert CLOCK_ANSWER.pack(b"question", 1, 2) == b"question" + struct.pack(">qq", 1, 2)


def test_the_document_has_the_ports() -> None:
    table = (ROOT / "docs/architecture.md").read_text()
    assert [port for port in Port if f"| {int(port)} |" not in table] == []
