"""Metrics from spans."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given, settings
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from kata_traces.commands import metrics as command_metrics
from kata_traces.read.metrics import MAX_OPERATIONS, OTHER, expose
from kata_traces.read.trace import Trace
from kata_traces.store.errors import StoreError
from support.odd_traces import trace_of, traces
from support.traces import SANDBOX, TRACE, Maker, container_start, write_store


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]


def count(text: str, operation: str, service: str = "kata") -> float:
    samples = families(text)["kata_span_duration_seconds"].samples
    wanted = {"operation": operation, "service": service, "sandbox_id": SANDBOX}
    return next(sample.value for sample in samples if sample.name.endswith("_count") and sample.labels == wanted)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command_metrics.add_arguments(parser)
    options = parser.parse_args(arguments)
    status = options.run(options)
    assert isinstance(status, int)
    return status


def test_each_operation_is_a_histogram_with_spans_as_examples() -> None:
    trace = trace_of(container_start())
    text = expose([trace])
    mounts = [span for span in trace.spans if (span.name, span.service) == ("mount", "kata-agent")]
    assert count(text, "mount", "kata-agent") == len(mounts)
    examples = [
        sample
        for sample in families(text)["kata_span_duration_seconds"].samples
        if sample.exemplar and sample.labels["operation"] == "mount"
    ]
    assert examples
    for sample in examples:
        assert sample.exemplar is not None
        assert sample.exemplar.labels["trace_id"] == TRACE
        assert sample.exemplar.labels["span_id"] in {span.span_id for span in mounts}
        assert sample.exemplar.value <= float(sample.labels["le"])


def test_sums_and_buckets_tell_the_durations() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 10_000)
    for took in (1, 40, 90_000):
        make.add("slow", 0, took, root)
    samples = families(expose([trace_of(make)]))["kata_span_duration_seconds"].samples
    slow = [sample for sample in samples if sample.labels["operation"] == "slow"]
    buckets = {sample.labels["le"]: sample.value for sample in slow if sample.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["0.025"], buckets["0.05"], buckets["60.0"], buckets["+Inf"]) == (1, 1, 2, 2, 3)
    [total] = [sample.value for sample in slow if sample.name.endswith("_sum")]
    assert total == pytest.approx(90.041)


def test_failures_are_counted() -> None:
    samples = families(expose([trace_of(container_start(error="no such program"))]))["kata_span_errors"].samples
    assert {sample.labels["operation"] for sample in samples} >= {"crun create", "create_container", "rootSpan"}


def test_a_span_that_lasts_is_not_counted_yet() -> None:
    trace = trace_of(container_start())
    trace.root.open = True
    assert 'operation="rootSpan"' not in expose([trace])


def test_a_guest_with_many_names_gets_a_bounded_number_of_series() -> None:
    make = Maker()
    root = make.add("rootSpan", 0, 100)
    for number in range(MAX_OPERATIONS + 50):
        make.add(f"name{number}", 1, 2, root, agent=True)
    text = expose([trace_of(make)])
    assert count(text, OTHER, "kata-agent") == 50
    assert text.count("_count{") == MAX_OPERATIONS + 2


@settings(max_examples=40, deadline=None)
@given(traces())
def test_any_trace_can_be_parsed_in_both_formats(trace: Trace) -> None:
    assert "kata_span_duration_seconds" in families(expose([trace]))
    assert list(prometheus_families(expose([trace], openmetrics=False)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path)
    assert run("--trace-dir", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert text.endswith("# EOF\n")
    assert count(text, "StartVM") == 1
    assert run(SANDBOX[:4], "--trace-dir", str(tmp_path), "--format", "prometheus") == 0
    assert list(prometheus_families(capsys.readouterr().out))


def test_a_sandbox_that_came_again_has_one_set_of_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path)
    write_store(tmp_path / "aside").rename(tmp_path / f"{SANDBOX}~1")
    (tmp_path / "aside").rmdir()
    assert run("--all", "--trace-dir", str(tmp_path)) == 0
    assert count(capsys.readouterr().out, "StartVM") == 1


def test_no_trace_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="enable_tracing"):
        run("--trace-dir", str(tmp_path))
