"""The command line of `kata-runtime`, as far as it goes without a guest."""

import subprocess
import sys

import pytest

from kata_runtime.cli.main import main


def failing(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["run", "--nosuch"],
        ["run", "--cpus", "0", "--", "true"],
        ["run", "--memory", "lots", "--", "true"],
        ["run", "--rootfs", "/", "--image", "x", "--", "true"],
        ["image"],
        ["trace"],
    ],
)
def test_a_command_line_that_is_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(*arguments) == 125
    assert "usage: kata-runtime" in capsys.readouterr().err


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 125
    assert "run a command in a container in a new VM" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("kata-runtime ")


def test_default_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show-default-config-paths"]) == 0
    assert "/etc/kata-containers/configuration.toml" in capsys.readouterr().out


def test_a_log_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing("--log", "/nowhere/log", "version") == 125
    assert "/nowhere/log" in capsys.readouterr().err


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    """Start-up cost counts for every command."""
    script = (
        "import sys; from kata_runtime.cli.main import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    )
    script += "print(*(name for name in ('grpc', 'pydantic', 'rich', 'opentelemetry', 'qemu') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
