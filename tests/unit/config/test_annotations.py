"""What a pod may change of the configuration."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from kata_runtime.config import Config
from kata_runtime.config.annotations import PREFIX, read_annotations, with_annotations
from kata_runtime.errors import ConfigError

RUNTIME, AGENT = f"{PREFIX}runtime.enable_tracing", f"{PREFIX}agent.enable_tracing"


def allowing(*patterns: str) -> Config:
    config = Config.default()
    return replace(config, qemu=replace(config.qemu, enable_annotations=patterns))


@pytest.mark.parametrize(
    ("annotations", "runtime", "agent"),
    [
        ({}, False, False),
        ({RUNTIME: "true"}, True, False),
        ({AGENT: "1", RUNTIME: "T"}, True, True),
        ({AGENT: "false"}, False, False),
    ],
)
def test_a_pod_turns_tracing_on(annotations: dict[str, str], runtime: bool, agent: bool) -> None:
    config = with_annotations(Config.default(), annotations)
    assert (config.runtime.enable_tracing, config.agent.enable_tracing) == (runtime, agent)


def test_and_off() -> None:
    config = Config.default()
    config = replace(config, runtime=replace(config.runtime, enable_tracing=True))
    assert not with_annotations(config, {RUNTIME: "false"}).runtime.enable_tracing


@pytest.mark.parametrize("patterns", [("enable_tracing",), ("agent.enable_tracing",), (r"agent\..*",), (".*_tracing",)])
def test_patterns_that_allow_it(patterns: tuple[str, ...]) -> None:
    assert with_annotations(allowing(*patterns), {AGENT: "true"}).agent.enable_tracing


@pytest.mark.parametrize("patterns", [(), ("tracing",), ("runtime.enable_tracing",), ("enable_trac",), ("",)])
def test_what_is_not_allowed_is_an_error(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"annotation .*agent\.enable_tracing is not enabled") as raised:
        with_annotations(allowing(*patterns), {AGENT: "true"})
    assert "[hypervisor.qemu] enable_annotations" in raised.value.hint


def test_values_and_patterns_that_are_none() -> None:
    with pytest.raises(ConfigError, match="expected true or false, got 'yes'"):
        with_annotations(Config.default(), {AGENT: "yes"})
    with pytest.raises(ConfigError, match=r"enable_annotations: '\(' is no regular expression"):
        with_annotations(allowing("("), {AGENT: "true"})


def test_others_have_no_effect_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert with_annotations(Config.default(), {f"{PREFIX}hypervisor.path": "/bin/sh", "other": "x"}) == (
            Config.default()
        )
    assert "hypervisor.path is not supported" in caplog.text
    assert "other" not in caplog.text


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (json.dumps({"annotations": {AGENT: "true", "a": "b"}}), {AGENT: "true"}),
        (json.dumps({"annotations": {"a": "b"}}), {}),
        (json.dumps({"annotations": [AGENT]}), {}),
        (json.dumps([AGENT]), {}),
        (f"{{ {PREFIX}", {}),
    ],
)
def test_annotations_of_a_bundle(tmp_path: Path, content: str, found: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(content)
    assert read_annotations(tmp_path) == found
    assert read_annotations(tmp_path / "nowhere") == {}
