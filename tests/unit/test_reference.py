"""The reference that the code writes of itself has all of it."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from kata_common.contract import RPCS
from kata_runtime.cli.main import whole_parser
from kata_runtime.config import Config
from kata_runtime.config.annotations import APPLIED
from kata_runtime.install.commands import read
from kata_telemetry.conventions import SCHEMA

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, "-P", ROOT / "docs/reference.py", "--output", directory], check=True)
    return {path.stem: path.read_text() for path in directory.iterdir()}


def test_it_is_whole(pages: dict[str, str]) -> None:
    for command in read(whole_parser()).all():
        assert f"# {' '.join(command.words)}\n" in pages["commands"]
        assert [o.names for o in command.options if not all(name in pages["commands"] for name in o.names)] == []
    config = Config.default()
    for table in (config.hypervisor, config.runtime, config.agent, config.factory):
        assert [field.name for field in fields(table) if f"| `{field.name}` |" not in pages["configuration"]] == []
    assert [name for name in APPLIED if f".{name}` |" not in pages["annotations"]] == []
    assert [name for name in RPCS if f".{name}\n" not in pages["calls"]] == []
    assert [name for name in SCHEMA if f"| `{name}` |" not in pages["spans"]] == []
    assert {"- `rootSpan`", "- `StartVM`", "- `create_container`"} <= set(pages["spans"].splitlines())
    assert "`kata_hypervisor_proc_status` | gauge | item" in pages["metrics"]
