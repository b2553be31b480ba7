"""Every start of a Python is found in the tree, and none of them takes modules from where its caller stands."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_common.interpreter import python_code, python_module
from kata_runtime.process import absolute, find_program, run_python

ROOT = Path(__file__).parents[2]
# Tests and benchmarks are left out: they run in a developer's own checkout.
SEARCHED = ("runtime", "agent", "telemetry", "common", "dev", "noxfile.py")
_PYTHON = re.compile(r"(?:.*/)?python3?(?:\.\d+)?")
_SAFE = re.compile(r"-[A-Za-z]*[IP][A-Za-z]*")
# A shell's command: the word that is a Python, then the word behind it.
_SHELL = re.compile(r'(?:exec|switch_root /root)\s+(?:"\$python"|@PYTHON@|\S*python3?(?:\.\d+)?)\s+(\S+)')


def files() -> list[Path]:
    found = [path for name in SEARCHED for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    return [path for path in found if path.is_file() and not path.is_symlink() and path.suffix != ".pyc"]


def parsed() -> Iterator[tuple[Path, ast.AST]]:
    for path in files():
        text = path.read_bytes()
        if path.suffix == ".py" or b"python" in text.partition(b"\n")[0]:
            yield path, ast.parse(text)


def is_python(node: ast.AST) -> bool:
    """Whether an expression is the path of a Python."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and _PYTHON.fullmatch(node.value) is not None
    if isinstance(node, ast.Call):  # str(VENV / "bin/python")
        return any(is_python(argument) for argument in node.args)
    if isinstance(node, ast.BinOp):
        return is_python(node.right)
    if isinstance(node, ast.Attribute):
        return node.attr == "executable" and isinstance(node.value, ast.Name) and node.value.id == "sys"
    return isinstance(node, ast.Name) and node.id in ("python", "executable")


def commands(tree: ast.AST) -> Iterator[list[ast.expr]]:
    """Everything that may be a command line: lists and tuples, and the arguments of calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            yield node.elts
        elif isinstance(node, ast.Call):
            yield node.args


def starts() -> Iterator[tuple[str, bool]]:
    """Where a Python is started, and whether it is told to leave the working directory alone."""
    for path, tree in parsed():
        for words in commands(tree):
            for place, word in enumerate(words[:-1]):
                after = words[place + 1]
                if is_python(word) and is_argument(after):
                    yield f"{path.relative_to(ROOT)}:{word.lineno}", is_safe(path, after)


def is_argument(node: ast.expr) -> bool:
    """Whether it may stand behind a Python: options, a script; and not one more path in a list of them."""
    if isinstance(node, ast.Constant):
        return str(node.value).startswith("-") or str(node.value).endswith(".py")
    return isinstance(node, ast.Starred | ast.JoinedStr)


def is_safe(path: Path, option: ast.expr) -> bool:
    if isinstance(option, ast.Starred) and isinstance(option.value, ast.Name):
        # Options that have a name of their own in the same file.
        named = re.search(rf"^{option.value.id} = (.+)$", path.read_text(), re.MULTILINE)
        return named is not None and any(_SAFE.fullmatch(word) for word in re.findall(r'"([^"]+)"', named[1]))
    return isinstance(option, ast.Constant) and _SAFE.fullmatch(str(option.value)) is not None


def test_every_start_of_a_python_is_safe() -> None:
    found = list(starts())
    assert [place for place, safe in found if not safe] == []
    # The search finds those that are known: pip, compiler and bundle of the image, loggers, what starts our own.
    known = {
        "image/wheels.py",
        "image/compiler.py",
        "image/bundle.py",
        "shim/stdio.py",
        "kata_common/interpreter.py",
    }
    assert [name for name in known if not any(name in place for place, _ in found)] == []
    assert sum(place.startswith("dev:") for place, _ in found) >= 4


def test_every_script_of_a_python_is_safe() -> None:
    """First lines, and commands of shells; what a console script of pip would be has no way to say it."""
    lines = {path: path.read_bytes().partition(b"\n")[0].decode() for path in files()}
    wrong = [
        str(path) for path, line in lines.items() if line.startswith("#!") and "python" in line and " -I" not in line
    ]
    shells = {path: _SHELL.findall(path.read_text()) for path, line in lines.items() if line == "#!/bin/sh"}
    assert sum(map(len, shells.values())) >= 3
    wrong += [str(path) for path, words in shells.items() for word in words if not _SAFE.match(word) and word[0] != "@"]
    assert wrong == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert list(project["scripts"]) == ["kata-agent"]


def test_a_start_that_is_not_safe_is_found() -> None:
    bad = ast.parse(
        '[sys.executable, "-m", "x"]; run(str(V / "bin/python"), "-c"); ("chroot", r, "/usr/bin/python3.11", "-S")'
    )
    found = [
        is_safe(Path(__file__), words[place + 1])
        for words in commands(bad)
        for place, word in enumerate(words[:-1])
        if is_python(word)
    ]
    assert found == [False, False, False]


# --- what is started ------------------------------------------------------------------------------------------------


@pytest.fixture
def decoys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """We stand among modules of others; the file `executed` is there once one of them has run."""
    for name in ("json", "runpy", "kata_telemetry", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write(__name__)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, "", ".", "relative"])
    return tmp_path


@pytest.mark.slow
def test_another_python_has_our_modules_and_no_decoy(decoys: Path) -> None:
    code = "import json, kata_telemetry; print(kata_telemetry.__file__, sys.argv[1:])"
    done = subprocess.run(python_code(code, "a", ""), check=True, capture_output=True, text=True)
    assert done.stdout.split(" ", 1)[1] == "['a', '']\n"
    done = subprocess.run(python_module("json.tool", "-h"), check=True, capture_output=True, text=True)
    assert "json" in done.stdout
    run_python("import json; open(sys.argv[1], 'w')", str(decoys / "ran"), timeout=10)
    assert (decoys / "ran").exists()
    assert not (decoys / "executed").exists()


def test_programs_are_not_looked_for_where_we_stand(decoys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = decoys / "kata-decoy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for search in ("", ".", ":/usr/bin", "/usr/bin:", "../" + decoys.name):
        monkeypatch.setenv("PATH", search)
        with pytest.raises(Exception, match="kata-decoy was not found"):
            find_program("kata-decoy", package="none")
    with pytest.raises(Exception, match=r"\./kata-decoy: the path of a program begins with /"):
        find_program("./kata-decoy", package="none")
    monkeypatch.setenv("PATH", os.fspath(decoys))
    assert find_program("kata-decoy", package="none") == str(program)


def test_absolute() -> None:
    assert absolute(":/a::b:./c:/d:") == "/a:/d"
