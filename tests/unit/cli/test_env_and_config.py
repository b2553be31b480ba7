"""`env` and `config`: what they print can be read again."""

import json
from pathlib import Path

import pytest
import tomli

from kata_runtime.cli.main import main
from kata_runtime.cli.toml import dump
from kata_runtime.config import load

# The sections of Kata's command and what scripts read of them (its kata-env.go).
SECTIONS = {
    "Kernel": {"Path", "Parameters"},
    "Meta": {"Version"},
    "Image": {"Path"},
    "Initrd": {"Path"},
    "Hypervisor": {"MachineType", "Version", "Path", "SharedFS", "VirtioFSDaemon", "Debug", "SecurityInfo"},
    "Runtime": {"Config", "Path", "Version", "Debug", "Trace", "DisableGuestSeccomp", "SandboxCgroupOnly"},
    "Host": {"Kernel", "Architecture", "Distro", "CPU", "Memory", "VMContainerCapable", "SupportVSocks"},
    "Agent": {"Debug", "Trace"},
}


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_toml_is_read_as_it_was() -> None:
    tables = {
        "a": 'quote " backslash \\ line\n\x00\x7f ü',
        "empty": {},
        "odd key.": {"b": True, "inner": {"deep": {"list": ["x", 1, 2.5, False], "none": []}}},
    }
    assert tomli.loads(dump(tables)) == tables


@pytest.mark.slow
def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "env", "--json"))
    assert found.keys() == SECTIONS.keys()
    for section, names in SECTIONS.items():
        assert names <= found[section].keys()
    again = tomli.loads(output(capsys, "env"))
    assert again["Hypervisor"] == found["Hypervisor"]
    assert found["Host"]["Memory"]["Total"] > 0


def test_config_says_what_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "configuration.toml"
    path.write_text('[runtime]\nenable_debug = true\notlp_headers = {authorization = "secret"}\n')
    shown = output(capsys, "--config", str(path), "config", "show")
    assert "secret" not in shown
    tables = tomli.loads(shown)
    assert tables["runtime"]["enable_debug"] is True
    assert str(path) in shown
    # What is printed is a configuration, and means the same.
    again = tmp_path / "again.toml"
    again.write_text(shown.replace("(hidden)", "secret"))
    given, printed = load(path), load(again)
    assert (given.qemu, given.agent, given.runtime) == (printed.qemu, printed.agent, printed.runtime)
    assert json.loads(output(capsys, "--config", str(path), "config", "check", "--json")) == {"files": [str(path)]}
    default = output(capsys, "config", "default")
    assert tomli.loads(default)["runtime"]["enable_debug"] is False


def test_a_configuration_that_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "configuration.toml"
    path.write_text("[runtime]\nenable_trace = true\n")
    assert main(["--config", str(path), "config", "check"]) == 125
    said = capsys.readouterr().err
    assert "enable_trace: unknown key" in said
    assert "did you mean enable_tracing?" in said
