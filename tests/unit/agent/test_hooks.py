"""Hooks of the guest's own root file system."""

from pathlib import Path
from typing import Any

import pytest

from kata_agent.container.hooks import add_hooks, find_hooks
from kata_agent.errors import InvalidError


def test_programs_are_found_by_their_kind(tmp_path: Path) -> None:
    for name in ("prestart/b", "prestart/a", "poststop/z", "prestart/no-program", "other/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o644 if "no-" in name else 0o755)
    (tmp_path / "prestart/link").symlink_to("a")
    (tmp_path / "prestart/folder").mkdir()
    found = find_hooks(str(tmp_path))
    assert found == {
        "prestart": [{"path": f"{tmp_path}/prestart/{name}", "args": [name, "prestart"]} for name in ("a", "b")],
        "poststop": [{"path": f"{tmp_path}/poststop/z", "args": ["z", "poststop"]}],
    }
    own: dict[str, Any] = {"hooks": {"startContainer": [{"path": "/in"}], "prestart": [{"path": "/own"}]}}
    add_hooks(own, found)
    assert [hook["path"] for hook in own["hooks"]["prestart"]] == ["/own", *(h["path"] for h in found["prestart"])]
    assert own["hooks"]["startContainer"] == [{"path": "/in"}]
    nothing: dict[str, Any] = {}
    add_hooks(nothing, {})
    assert nothing == {}


def test_where_there_are_none(tmp_path: Path) -> None:
    assert find_hooks("") == find_hooks(str(tmp_path)) == find_hooks(str(tmp_path / "missing")) == {}
    for wrong in ("relative", "/a/../b"):
        with pytest.raises(InvalidError, match="guest_hook_path"):
            find_hooks(wrong)
