"""Options of `run` and its like: what they mean, and what is told at once."""

import os
from pathlib import Path

import pytest

from kata_runtime.cli.main import main
from kata_runtime.cli.options import volume
from kata_runtime.errors import KataError


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "--memroy", "1G", "--", "true"], "unknown option --memroy; did you mean --memory?"),
        (["run", "--envv=1", "--", "true"], "unknown option --envv=1; did you mean --env?"),
        (["run", "--nothing-like-it", "--", "true"], "unknown option --nothing-like-it; --help tells"),
        (["run", "--cwd", "tmp", "--", "true"], "'tmp' is not an absolute path"),
        (["run", "--workdir", ".", "--", "true"], "'.' is not an absolute path"),
        (["run", "-v", "/etc", "--", "true"], "the path in the container, '', is not absolute"),
        (["run", "-v", "/etc:etc", "--", "true"], "'etc', is not absolute"),
        (["run", "-v", "/etc:/etc:wo", "--", "true"], "is not SRC:DST, SRC:DST:ro"),
        (["run", "-v", "/nowhere:/etc", "--", "true"], "there is no /nowhere"),
        (["list", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["trace", "list", "--nosuch"], "unknown option --nosuch"),
        (["list", "\x1b[31m"], "unknown option \\x1b[31m"),
    ],
)
def test_what_is_wrong_and_whose_usage(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == KataError.exit_code
    said = capsys.readouterr().err
    assert why in said
    assert f"usage: kata-runtime {arguments[0]}" in said


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    mount = volume("here:/there:ro")
    assert (mount["source"], mount["destination"], mount["options"]) == (f"{tmp_path}/here", "/there", ["rbind", "ro"])
    assert volume(f"{tmp_path}:/there")["options"] == ["rbind", "rw"]


@pytest.mark.skipif(os.geteuid() != 0, reason="what others are told is that they aren't root")
@pytest.mark.parametrize(
    ("option", "why"),
    [
        (("--memory", "16384G"), "16777216 MiB of memory are asked for: a VM of this host can have"),
        (("--cpus", str((os.cpu_count() or 1) + 1)), "CPUs are asked for: a VM of this host can have"),
    ],
)
def test_too_much_is_told_at_once(option: tuple[str, str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *option, "--", "true"]) == 125
    assert why in capsys.readouterr().err
