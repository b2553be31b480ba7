"""The dashboard's queries, answered by Prometheus' own engine for the metrics of sandboxes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from kata_traces.read.metrics import expose
from kata_traces.read.trace import Trace
from support.odd_traces import trace_of
from support.promtool import judge
from support.traces import container_start

DASHBOARD = Path(__file__).parents[2] / "docs/grafana-starts.json"
# Seconds between scrapes; Grafana makes its interval of a rate of four.
SCRAPE, INTERVAL = 15, "1m"
# Minutes at which a sandbox is there for the first time; it stays for ten.
GOOD, BROKEN, ANOTHER, STAY, QUIET = 5, 12, 13, 10, 30
# promtool looks at 10,000 samples at most.
OPERATIONS = ("rootSpan", "StartVM", "boot.kernel", "crun create")


def series(trace: Trace, name: str, minute: int) -> Iterator[dict[str, str]]:
    """What a scrape finds of a sandbox, from `minute` on."""
    per_minute = 60 // SCRAPE
    for family in text_string_to_metric_families(expose([trace])):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            if sample.labels.get("operation", "StartVM") not in OPERATIONS:
                continue
            labels = ",".join(
                f"{key}={json.dumps(value)}" for key, value in {**sample.labels, "sandbox_id": name}.items()
            )
            values = f"_x{minute * per_minute} {sample.value}x{STAY * per_minute}"
            yield {"series": f"{sample.name}{{{labels}}}", "values": values}


def answers(query: str, minute: int) -> bool:
    """What is right: whether there is anything to see of what began in that minute."""
    if "kata_span_errors" in query:
        return minute == BROKEN
    if "kata_start_stage" in query:
        return minute in (GOOD, ANOTHER)
    return minute != QUIET


@pytest.mark.slow
def test_each_query_sees_a_start_when_it_comes_and_then_no_more(tmp_path: Path) -> None:
    good, broken = trace_of(container_start()), trace_of(container_start(error="no such file"), outcome="error")
    given = [*series(good, "a", GOOD), *series(broken, "b", BROKEN), *series(good, "c", ANOTHER)]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expected = [
        {
            # How many lines the panel has; one of NaN is none.
            "expr": f"clamp_max(count(({target['expr'].replace('$__rate_interval', INTERVAL)}) > 0), 1)",
            "eval_time": f"{minute}m{SCRAPE}s",
            "exp_samples": [{"labels": "{}", "value": 1}] if answers(target["expr"], minute) else [],
        }
        for panel in panels
        for target in panel["targets"]
        for minute in (GOOD, BROKEN, ANOTHER, QUIET)
    ]
    assert len(expected) >= 4 * 5
    content = {"tests": [{"interval": f"{SCRAPE}s", "input_series": given, "promql_expr_test": expected}]}
    rules = tmp_path / "rules.json"  # YAML takes JSON
    rules.write_text(json.dumps(content))
    done = judge("test", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr
