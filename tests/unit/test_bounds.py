"""The bounds of the house, and who may be beyond them. `nox -s house` prints the figures."""

from functools import cache
from pathlib import Path

import pytest

from support.house import MAX_ATTRIBUTES, MAX_FILE, MAX_FUNCTION, House

pytestmark = pytest.mark.slow  # every module is parsed

ROOT = Path(__file__).parents[2]
# What is larger than the bound, how large at most, and the decision that says why.
FILES: dict[str, tuple[int, str]] = {}
FUNCTIONS: dict[str, tuple[int, str]] = {}
CLASSES = {
    "kata_agent.server.tracing.Tracing": (18, "0026"),
    "kata_runtime.hypervisor.vsock.device.connection.Connection": (23, "0026"),
    "kata_runtime.hypervisor.vsock.device.device.Device": (19, "0026"),
    "kata_runtime.hypervisor.vsock.device.server.Server": (18, "0026"),
    "kata_runtime.sandbox.sandbox.Sandbox": (15, "0026"),
    "kata_runtime.shim.launch.Launch": (14, "0026"),
    "kata_telemetry.span.Span": (15, "0026"),
}


@cache
def house() -> House:
    return House.of(ROOT)


@pytest.mark.parametrize(
    ("sizes", "bound", "excepted"),
    [
        ("files", MAX_FILE, FILES),
        ("functions", MAX_FUNCTION, FUNCTIONS),
        ("attributes", MAX_ATTRIBUTES, CLASSES),
    ],
)
def test_bounds(sizes: str, bound: int, excepted: dict[str, tuple[int, str]]) -> None:
    found: dict[str, int] = getattr(house(), sizes)()
    assert len(found) > 100
    over = {name: size for name, size in found.items() if size > bound}
    assert {name: size for name, size in over.items() if size > excepted.get(name, (0, ""))[0]} == {}
    assert set(excepted) - set(over) == set(), "these rows are no longer needed: take them out of the table"


def test_every_exception_has_a_decision_that_names_it() -> None:
    for name, (_, decision) in (FILES | FUNCTIONS | CLASSES).items():
        [text] = [path.read_text() for path in sorted((ROOT / "docs/decisions").glob(f"{decision}-*.md"))]
        short = Path(name).name if name.endswith(".py") else name.rpartition(".")[2]
        assert f"`{short}`" in text


def test_no_circles() -> None:
    assert house().circles() == []


def test_one_place_names_the_ports() -> None:
    assert house().port_places() == ["kata_common.contract"]


def test_what_is_measured(tmp_path: Path) -> None:
    """Of a house that has all the faults."""
    package = tmp_path / "runtime/kata_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    body = "\n".join(f"        self.a{number} = 0" for number in range(13))
    lines = [
        "from kata_runtime import b",
        "X_PORT = 1024",
        "A = B = 1",
        "__all__ = []",
        "class C:",
        "    def f(self):",
        body,
    ]
    (package / "a.py").write_text("\n".join(lines) + "\n" * 500)
    (package / "b.py").write_text("def g():\n    from kata_runtime.a import A\n" + "    g()\n" * 60)
    (package / "c.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kata_runtime import d\n"
    )
    (package / "d.py").write_text("from kata_runtime import c\n")
    found = House.of(tmp_path)
    assert found.circles() == [["kata_runtime.a", "kata_runtime.b"]]
    assert found.port_places() == ["kata_runtime.a"]
    assert found.names() == 3
    assert found.attributes() == {"kata_runtime.a.C": 13}
    assert found.functions() == {"kata_runtime.a.f": 14, "kata_runtime.b.g": 62}
    assert found.files()["runtime/kata_runtime/a.py"] == 518
