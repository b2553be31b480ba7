"""The repository says of itself what is so."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def read(path: str) -> str:
    return (ROOT / path).read_text()


def nox_sessions() -> set[str]:
    return set(re.findall(r"^@nox\.session\ndef (\w+)\(", read("noxfile.py"), re.MULTILINE))


def test_readme_has_the_two_commands_and_ci_runs_the_second() -> None:
    commands = re.findall(r"^    \$? ?(\./dev \w+)$", read("README.md"), re.MULTILINE)
    assert commands == ["./dev run", "./dev test"]
    assert "exec ./dev test\n" in read(".ci/run")


@pytest.mark.parametrize("name", ["dev", ".ci/run"])
def test_executables(name: str) -> None:
    assert (ROOT / name).stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_things_exist(text: Path) -> None:
    """Links, nox sessions, and paths of this repository."""
    content = text.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", content) if "://" not in link]
    assert [link for link in links if not (text.parent / link).exists()] == []
    assert set(re.findall(r"nox -s (\w+)", content)) <= nox_sessions()
    # `docs/decisions/0001` is a short form of the one file of that number.
    named = re.findall(r"`((?:docs|tests|protos|runtime|agent|telemetry)/[\w./-]+)`", content)
    assert [path for path in named if not (ROOT / path).exists() and not list(ROOT.glob(f"{path}*"))] == []


def test_every_decision_is_in_the_index() -> None:
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", read("docs/decisions/README.md")) == names
    numbers = [name[:4] for name in names]
    assert len(set(numbers)) == len(numbers)


def test_dev_tests_with_every_session_that_tests() -> None:
    """A session that `./dev test` forgets is one that nobody runs."""
    [quick] = re.findall(r"^QUICK = \(([^)]*)\)", read("dev"), re.MULTILINE)
    # containerd2, docker and jaeger need programs that take minutes to build, deb and kubernetes fresh systems.
    other = {"vm", "containerd", "containerd2", "docker", "nested", "faults", "bench", "jaeger", "protos", "lock"}
    # The short form of `soak` is a test of vm's.
    other |= {"house", "hostile", "deb", "kubernetes", "reference", "soak"}
    assert nox_sessions() - set(re.findall(r"\w+", quick)) == other
    assert re.findall(r'"-s", "(\w+)"', read("dev")) == ["nested", "containerd"]
    assert re.findall(r'^GUESTS = \("vm", "faults", "hostile"\)$', read("dev"), re.MULTILINE)


def test_dev_runs_on_an_older_python() -> None:
    """So that it can say that the Python is too old, instead of a syntax error."""
    code = "import ast, pathlib; ast.parse(pathlib.Path('dev').read_text(), feature_version=(3, 9))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_dev_without_arguments_explains_itself() -> None:
    done = subprocess.run([sys.executable, "dev"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "./dev run" in done.stdout


def test_what_dev_installs_is_pinned_and_fits() -> None:
    """`nox -s lock` after a change of the dependencies."""
    entries = read("requirements.txt").replace("\\\n", " ").splitlines()
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    pinned = dict(entry.split(" ")[0].split("==") for entry in entries)
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    unfit = [
        str(want)
        for want in wanted
        if not want.specifier.contains(pinned.get(canonicalize_name(want.name), "0"), prereleases=True)
    ]
    assert unfit == []
