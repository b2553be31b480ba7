"""Every valid id has a place everywhere; any other is refused at once, by both sides and the forwarder."""

import re
from pathlib import Path

import pytest

from kata_agent.container.spec import check_id
from kata_agent.errors import InvalidError
from kata_common import ids, places
from kata_runtime.errors import SandboxError
from kata_runtime.sandbox.sandbox import SandboxOptions
from kata_runtime.sandbox.state import Directories, SandboxDirectory, valid_id
from kata_traces.forwarder.sources import Template

# pkg/identifiers of containerd.
CONTAINERD = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
SOCKETS = sorted(value for name, value in vars(places).items() if name.endswith("_SOCKET"))
PORTS = Template.parse(f"{places.RUN_DIR}/{{ID}}/{places.PORTS}/{places.VSOCK_SOCKET}")


@pytest.mark.parametrize("length", range(82))
@pytest.mark.parametrize("filler", ["a", "-a", "a.b_c-0"])
def test_every_length(length: int, filler: str) -> None:
    name = ("x" + filler * length)[:length]
    wanted = length <= 76 and CONTAINERD.fullmatch(name) is not None
    assert ids.is_id(name) == wanted
    assert PORTS.id_of(0, name) == (name if wanted else None)
    if not wanted:
        with pytest.raises(SandboxError) as refused:
            valid_id(name)
        assert "76" in refused.value.hint
        with pytest.raises(InvalidError, match="at most 76"):
            check_id(name, "id")
        return
    assert valid_id(name) == check_id(name, "id") == name
    host = ids.hostname_of(name)
    assert ids.is_hostname(host)
    assert len(host) == length if length <= 64 else 62 <= len(host) <= 64
    assert name.startswith(host)
    assert ids.is_id(host)  # it does not end with a separator
    run = SandboxDirectory(Directories(), name).run
    for socket in SOCKETS:
        assert len(str(run / socket).encode()) <= ids.MAX_SOCKET_PATH


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\0", "a\n", "-a", "a-", "a--b", "a._b", "ä", "٣", "²", "a b", "a" * 77, "ﬁ"]
)
def test_what_names_nothing(name: str) -> None:
    assert not ids.is_id(name)
    assert not CONTAINERD.fullmatch(name) or len(name) > 76


def test_sockets_are_named_in_one_place() -> None:
    root = Path(__file__).parents[3]
    sources = [path for folder in ("runtime", "telemetry") for path in (root / folder).rglob("*.py")]
    found = {path.name for path in sources if re.search(r'"[\w.-]+\.sock"', path.read_text())}
    assert found == set()
    assert len(SOCKETS) == 5


@pytest.mark.parametrize("hostname", ["h" * 65, "ü" * 33])
def test_a_host_name_that_linux_does_not_take(hostname: str) -> None:
    with pytest.raises(SandboxError, match=r"has 6\d bytes") as refused:
        SandboxOptions(hostname=hostname)
    assert "Linux takes 64" in refused.value.hint


@pytest.mark.parametrize(("hostname", "fits"), [("h" * 64, True), ("ü" * 32, True), ("h" * 65, False), ("a\0", False)])
def test_host_names(hostname: str, fits: bool) -> None:
    assert ids.is_hostname(hostname) is fits
