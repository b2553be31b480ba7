"""Which traces are kept: the rule at a sandbox's end, and what goes first where there is no room."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.config.model import RuntimeConfig
from kata_runtime.errors import ConfigError
from kata_runtime.sandbox.trace import variables
from kata_telemetry.conventions import SLOW
from kata_traces.read.metrics import expose
from kata_traces.store.keep import Keep, KeepError, Retention, prune, settle
from kata_traces.store.store import Meta, Store, stores
from support.odd_traces import trace_of
from support.traces import BEGIN, MS, container_start, write_store

DASHBOARD = Path(__file__).parents[3] / "docs/grafana-starts.json"
FAILED: dict[str, Any] = {"outcome": "error", "failure": "the VM ended"}
LATE: dict[str, Any] = {"labels": {SLOW: "True"}}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", Keep()),
        ("failed, slow, 1 %", Keep(True, True, 0.01)),
        (" 2.5% ,FAILED", Keep(True, False, 0.025)),
        ("slow", Keep(False, True, 0.0)),
        ("0 %", Keep(False, False, 0.0)),
    ],
)
def test_rules(text: str, rule: Keep) -> None:
    assert Keep.parse(text) == rule


@pytest.mark.parametrize("text", ["fast", "1", "101 %", "-1 %", "failed slow", "x %", "nan %"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(KeepError, match="is neither 'failed', nor 'slow', nor a share"):
        Keep.parse(text)


@pytest.mark.parametrize(
    ("meta", "failed", "slow"),
    [
        (Meta("s", outcome="exit 0"), False, False),
        (Meta("s", outcome="exit 7"), False, False),
        (Meta("s", outcome="killed"), True, False),
        (Meta("s", outcome="error", failure="x"), True, False),
        (Meta("s", outcome="exit 0", labels={SLOW: "True"}), False, True),
    ],
)
def test_what_is_worth_keeping(meta: Meta, failed: bool, slow: bool) -> None:
    assert Keep.parse("failed").keeps(meta) is failed
    assert Keep.parse("slow").keeps(meta) is slow


def test_a_share_is_by_trace_id() -> None:
    rule = Keep.parse("25 %")
    kept = [number for number in range(1000) if rule.keeps(Meta("s", trace_id=f"{number * (1 << 64) // 1000:032x}"))]
    assert kept == list(range(250))


def test_what_is_not_kept_is_gone(tmp_path: Path) -> None:
    fine, broken = write_store(tmp_path, sandbox_id="fine"), write_store(tmp_path, sandbox_id="broken", **FAILED)
    rule = Keep.parse("failed")
    assert not settle(Store(fine), rule)
    assert settle(Store(broken), rule)
    assert [store.directory.name for store in stores(tmp_path)] == ["broken"]


def test_the_failed_and_the_slow_stay_longest(tmp_path: Path) -> None:
    for number in range(12):
        more = FAILED if number == 0 else LATE if number == 1 else {}
        write_store(tmp_path, sandbox_id=f"s{number:02}", start=BEGIN + number * MS, **more)
    prune(tmp_path, Retention(traces=6), tmp_path / "none")
    left = sorted(store.directory.name for store in stores(tmp_path))
    assert left == ["s00", "s01", "s08", "s09", "s10", "s11"]


def test_but_they_do_not_push_all_others_out(tmp_path: Path) -> None:
    for number in range(12):
        write_store(tmp_path, sandbox_id=f"s{number:02}", start=BEGIN + number * MS, **(FAILED if number % 2 else {}))
    prune(tmp_path, Retention(traces=4), tmp_path / "none")
    assert sorted(store.directory.name for store in stores(tmp_path)) == ["s08", "s09", "s10", "s11"]


def test_the_configuration_is_checked(tmp_path: Path) -> None:
    variables.check_keep(RuntimeConfig())
    variables.check_keep(RuntimeConfig(trace_keep="failed, slow", slow_start_threshold=3.0))
    with pytest.raises(ConfigError, match=r"\[runtime\] trace_keep: 'often' is neither"):
        variables.check_keep(RuntimeConfig(trace_keep="often"))
    with pytest.raises(ConfigError, match="has 'slow', and nothing says what is"):
        variables.check_keep(RuntimeConfig(trace_keep="slow"))
    kept = write_store(tmp_path)
    assert variables.worth_keeping(RuntimeConfig(), Store(kept))
    assert not variables.worth_keeping(RuntimeConfig(trace_keep="failed"), Store(kept))
    assert not kept.exists()


# --- metrics


def test_stages_are_metrics_with_their_trace_as_example() -> None:
    trace = trace_of(container_start())
    text = expose([trace])
    [line] = re.findall(r'kata_start_stage_seconds_bucket\{le="2.5",sandbox_id="\w+",stage="kernel"\} (.*)', text)
    assert line.startswith("1.0 # {")
    assert f'trace_id="{trace.trace_id}"' in line
    assert re.search(r'kata_start_stage_seconds_sum\{sandbox_id="\w+",stage="all"\} 2\.7', text)
    # A start that failed has no stages of a start.
    assert 'stage="all"' not in expose([trace_of(container_start(error="no such file"), outcome="error")])


def test_the_dashboard_asks_for_what_there_is() -> None:
    content = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in content["panels"] for target in panel["targets"]]
    exposed = set(re.findall(r"^(kata_\w+)\{", expose([trace_of(container_start(error="x"))]), re.MULTILINE))
    exposed |= set(re.findall(r"^(kata_\w+)\{", expose([trace_of(container_start())]), re.MULTILINE))
    asked = {name for query in queries for name in re.findall(r"kata_\w+", query)}
    assert len(queries) >= 5
    assert asked <= exposed
    # A sandbox's series are born with their count, which `rate` and `increase` don't see (contract/test_dashboard.py).
    assert [query for query in queries if re.search(r"rate\(|increase\(", query)] == []
