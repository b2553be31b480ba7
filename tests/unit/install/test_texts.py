"""Manuals and completions: of every command that there is, and as man(1) and the shells understand them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kata_runtime.cli.install import documented
from kata_runtime.cli.main import whole_parser
from kata_runtime.install import completion, manual
from kata_runtime.install.commands import Command, Values, read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree() -> Command:
    return read(whole_parser())


def test_every_command_says_what_it_is_for(tree: Command) -> None:
    assert len(list(tree.all())) > 40
    assert [command.words for command in tree.all() if not command.help] == []
    assert [(c.words, o.names) for c in tree.all() for o in c.options if not o.help] == []


def test_every_command_has_a_page_or_a_part_of_one(tree: Command) -> None:
    pages = manual.pages(tree, 1, "1.0")
    assert {f"kata-runtime-{command.name}.1" for command in tree.commands} | {"kata-runtime.1"} == set(pages)
    for command in tree.commands:
        text = pages[f"kata-runtime-{command.name}.1"].replace("\\", "")
        for part in command.all():
            assert " ".join(part.words) in text
            assert [o.names for o in part.options if not all(name in text for name in o.names)] == []


def test_man_has_nothing_to_say_of_the_pages(tmp_path: Path) -> None:
    if not shutil.which("groff"):
        pytest.fail("groff-base is not installed: ./dev test installs it")
    files = []
    for command in documented(whole_parser()):
        for name, text in manual.pages(command, 1, "1.0").items():
            (tmp_path / name).write_text(text)
            files.append(tmp_path / name)
    assert len(files) > 20
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", *files], capture_output=True, check=True)
    assert done.stderr == b""
    assert b"\n.TP" not in done.stdout


def test_text_of_a_page_is_no_request() -> None:
    command = Command(("x",), ".br it's a \\test -- `so`", "x [-h]")
    text = manual.page(command, 1, "1")
    assert "x \\- \\&.br it\\(aqs a \\etest \\-\\- \\(gaso\\(ga" in text
    assert not any(line.startswith((".br", "'")) for line in text.splitlines())


# --- completions: what a shell offers -------------------------------------------------------------------------------

# Words so far, the last of them not finished; some that are offered, and some that are not.
CASES = [
    (["tr"], {"trace"}, {"run", "--root"}),
    (["--sys"], {"--systemd-cgroup"}, {"trace"}),
    (["trace", "s"], {"show", "serve"}, {"run", "list"}),
    (["run", "--t"], {"--tty", "--trace"}, {"--force"}),
    (["--log-format", ""], {"json", "text"}, {"run"}),
    # A value that is called as a command is.
    (["--root", "run", "im"], {"image"}, {"--image"}),
    (["image", "build", "--fo"], {"--force"}, {"--json"}),
    (["completion", ""], {"bash", "zsh", "fish"}, {"run"}),
]


def offered_by_bash(script: Path, words: list[str]) -> set[str]:
    line = " ".join(f"'{word}'" for word in ["kata-runtime", *words])
    code = f"compopt() {{ :; }}; . {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _kata_runtime; "
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    return set(subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split())


def offered_by_zsh(script: Path, words: list[str]) -> set[str]:
    line = " ".join(f"'{word}'" for word in ["kata-runtime", *words])
    code = (
        '_describe() { print -l -- "${(@)${(P)2}%%:*}"; }; _files() { print FILES; }; _message() { :; }\n'
        f'compadd() {{ shift; print -l -- "$@"; }}\nwords=({line}); CURRENT={len(words) + 1}; . {script}'
    )
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    # zsh itself leaves out what does not begin so.
    return {word for word in done.stdout.split() if word.startswith(words[-1])}


def offered_by_fish(script: Path, words: list[str]) -> set[str]:
    line = " ".join(["kata-runtime", *(word or "" for word in words)])
    code = f'source {script}; complete -C "{line}"'
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize(("words", "wanted", "unwanted"), CASES, ids=lambda value: "-".join(sorted(value)))
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_offers(
    shell: str, words: list[str], wanted: set[str], unwanted: set[str], tree: Command, tmp_path: Path
) -> None:
    if not shutil.which(shell):
        pytest.fail(f"{shell} is not installed: ./dev test installs it")
    script = tmp_path / "script"
    script.write_text(completion.SHELLS[shell](tree))
    offer = {"bash": offered_by_bash, "zsh": offered_by_zsh, "fish": offered_by_fish}[shell]
    found = offer(script, words)
    assert wanted <= found
    assert not unwanted & found


def test_where_files_stand(tree: Command) -> None:
    [run] = [command for command in tree.commands if command.name == "run"]
    kinds = {name: option.values for option in run.options for name in option.names}
    assert kinds["--rootfs"] is kinds["--image"] is kinds["-v"] is Values.FILES
    assert (kinds["--tty"], kinds["--memory"]) == (Values.NONE, Values.OTHER)
    [stop] = [command for command in tree.commands if command.name == "stop"]
    assert stop.places[0].values is Values.SANDBOXES
