"""Text that would reach a container as something else is refused."""

import json
from pathlib import Path

import pytest

from kata_runtime.errors import RootfsError
from kata_runtime.oci.bundle import read_bundle, read_process
from kata_runtime.oci.text import check_environment, check_text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"args": ["a", "b\0c"]}, r"args[1] has a NUL byte: 'b\x00c'"),
        ({"env": ["A=\udcff"]}, r"env[0] is no UTF-8: 'A=\udcff'"),
        ({"a\0b": 1}, "a name in the whole has a NUL byte"),
        ({"linux": {"sysctl": {"x": "\ud800"}}}, "linux.sysctl.x is no UTF-8"),
    ],
)
def test_refused(value: object, said: str) -> None:
    with pytest.raises(RootfsError) as caught:
        check_text(value, "")
    assert str(caught.value).startswith(said)
    assert caught.value.hint


def test_taken() -> None:
    check_text({"args": ["", "\n\t\x1b", "äöü", "\U0001f600"], "n": 1, "b": None}, "")


@pytest.mark.parametrize("entry", ["FOO", "", "=x"])
def test_environment(entry: str) -> None:
    """runc 1.1 refuses each of them; crun takes the first for an order to unset."""
    with pytest.raises(RootfsError, match=r"env\[1\]: .* is no variable"):
        check_environment(["A=b", entry], "env")
    check_environment(["A=", "B==", "C d=e"], "env")


def test_bundles_and_processes_are_checked(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec = {"process": {"args": ["sh", "a\0"], "cwd": "/"}, "root": {"path": "rootfs"}}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    with pytest.raises(RootfsError, match=r"process\.args\[1\] has a NUL byte"):
        read_bundle(tmp_path)
    with pytest.raises(RootfsError, match=r"process\.env\[0\]: 'A' is no variable"):
        read_process(json.dumps({"args": ["sh"], "cwd": "/", "env": ["A"]}).encode())
