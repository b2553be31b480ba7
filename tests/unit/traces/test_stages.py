"""The table of stages is about spans that exist."""

import json
import re
from pathlib import Path

import pytest

from kata_traces.read import stages
from support.span_names import pattern_of, span_names

pytestmark = pytest.mark.slow  # every module is parsed


def test_there_are_names() -> None:
    names = span_names()
    assert {"StartVM", "createSandbox", "AgentService.PauseContainer", "pause_container", "qmp.*", "Shutdown"} <= names
    assert not {"connect", "get_oom_event", "AgentService.Check"} & names


def test_every_row_has_its_span() -> None:
    # A text that begins with what is not known would match anything.
    patterns = [pattern_of(name) for name in span_names() if not name.startswith("*")]
    rows = [*stages.STAGE_OF, *stages.LANE_OF]
    assert len(rows) > 40
    assert [row for row in rows if not any(pattern.fullmatch(row) for pattern in patterns)] == []


def test_every_prefix_has_its_spans() -> None:
    prefixes = [prefix for prefix, _ in (*stages.STAGE_OF_PREFIX, *stages.LANE_OF_PREFIX)]
    known = {name.partition("*")[0] for name in span_names() if "*" in name} - {""}
    names = span_names() | known
    dead = [p for p in prefixes if not any(name.startswith(p) for name in names) and not p.startswith(tuple(known))]
    assert dead == []
    assert any(name.startswith(stages.CALL) for name in names)


@pytest.mark.parametrize("name", ["mountRootfs", "HotplugAddDevice", "made.up"])
def test_a_span_needs_no_row(name: str) -> None:
    assert stages.rule(name) is None


def test_the_page_knows_every_stage() -> None:
    """By their order, which is that of the rows that it is sent, and each with a colour."""
    page = Path(stages.__file__).parents[1] / "views/page"
    [listed] = re.findall(r"^const STAGES = (\[.*\]);$", (page / "site.js").read_text(), re.MULTILINE)
    assert json.loads(listed) == list(stages.Stage)
    colours = re.findall(r"^  --stage-(\d+):", (page / "page.css").read_text(), re.MULTILINE)
    assert colours == [str(number) for number in range(len(stages.Stage))]
