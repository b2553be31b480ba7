"""./dev: what it installs, what it says, and how it runs tests side by side."""

import importlib.machinery
import importlib.util
import os
import threading
from collections import deque
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with artifacts of its own, as root on Debian 13."""
    loader = importlib.machinery.SourceFileLoader("dev", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("dev", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    monkeypatch.setattr(module, "ARTIFACTS", artifacts)
    monkeypatch.setattr(module, "distribution", lambda: ("debian", "13"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for programs that are found first; each notes its command line in `calls`."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {directory}/calls\n{script}\n')
    (directory / name).chmod(0o755)


def apt_calls(directory: Path) -> list[str]:
    return [line for line in (directory / "calls").read_text().splitlines() if line.startswith("apt-get")]


def test_only_missing_packages_are_installed(dev: ModuleType, programs: Path) -> None:
    installed = [name for name in (*dev.PACKAGES["debian", "13"], "buildah") if name not in ("umoci", "virtiofsd")]
    program(programs, "dpkg-query", "".join(f"echo 'ii {name}'\n" for name in installed) + "echo 'rc umoci'; exit 1")
    program(programs, "apt-cache", "echo 'Candidate: 1'; echo 'Candidate: 2'")
    program(programs, "apt-get", "")
    dev.install_packages(dev.PACKAGES, {("debian", "13"): ["buildah"]})
    [call] = apt_calls(programs)
    assert call.endswith("install --yes --no-install-recommends umoci virtiofsd")


def test_nothing_missing_calls_nothing(dev: ModuleType, programs: Path) -> None:
    program(programs, "dpkg-query", "".join(f"echo 'ii {name}'\n" for name in dev.PACKAGES["debian", "13"]))
    program(programs, "apt-get", "")
    dev.install_packages(dev.PACKAGES)
    assert apt_calls(programs) == []


@pytest.mark.parametrize("candidates", ["", "echo 'Candidate: (none)'"])
def test_lists_are_fetched_only_if_they_lack_something(dev: ModuleType, programs: Path, candidates: str) -> None:
    program(programs, "dpkg-query", "exit 1")
    program(programs, "apt-cache", candidates)
    program(programs, "apt-get", "")
    dev.install_packages(dev.PACKAGES)
    assert apt_calls(programs)[0].split()[-1] == "update"
    assert len(apt_calls(programs)) == 2


def test_lists_that_are_old_are_renewed(dev: ModuleType, programs: Path) -> None:
    program(programs, "dpkg-query", "exit 1")
    program(programs, "apt-cache", "echo 'Candidate: 1'; " * len(dev.PACKAGES["debian", "13"]))
    program(programs, "apt-get", f'grep -q "apt-get.*update" {programs}/calls || {{ echo "404 Not Found"; exit 100; }}')
    dev.install_packages(dev.PACKAGES)
    assert [("update" if "update" in call.split() else "install") for call in apt_calls(programs)] == [
        "install",
        "update",
        "install",
    ]


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("Could not resolve host: deb.debian.org", "the network"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("E: Unable to locate package umoci", "universe"),
        ("something else", ""),
    ],
)
def test_failure_shows_the_end_of_the_output_and_what_to_do(
    dev: ModuleType, programs: Path, output: str, hint: str
) -> None:
    program(programs, "tool", f"seq 1 100; echo '{output}' >&2; exit 3")
    with pytest.raises(dev.Failure) as caught:
        dev.call(["tool"], "trying")
    assert str(caught.value).startswith("trying: failed with status 3: tool\n")
    assert str(caught.value).endswith(f"  | {output}")
    assert len(str(caught.value).splitlines()) == 13
    assert hint in caught.value.hint


def test_without_root_or_sudo(dev: ModuleType, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("http_proxy", "http://proxy")
    program(programs, "sudo", "")
    assert dev.as_root(["true"])[-2:] == ["--", "true"]
    assert "http_proxy" in dev.as_root(["true"])[1]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(dev.Failure, match="there is no sudo"):
        dev.as_root(["true"])


def run_lanes(dev: ModuleType, *lanes: list[tuple[str, str]]) -> int:
    made = [[dev.session(name, ["sh", "-c", script]) for name, script in lane] for lane in lanes]
    own, other = deque(made[0]), deque(made[1] if lanes[1:] else [])
    threads = [threading.Thread(target=dev.run_lane, args=pair) for pair in ((own, other), (other, own))[: len(lanes)]]
    for thread in threads:
        thread.start()
    parts = [part for lane in made for part in lane]
    for part in parts:
        dev.show(part)
    for thread in threads:
        thread.join()
    return int(dev.summary(parts, 1.5))


def test_lanes_run_side_by_side_and_are_shown_one_after_another(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each needs the other to have begun: one after another they would wait for ever.
    for name in "ab":
        os.mkfifo(tmp_path / name)
    first = [("one", f"echo 1; echo > {tmp_path}/a; cat {tmp_path}/b; echo 2"), ("two", "echo 3")]
    second = [("three", f"echo 4; cat {tmp_path}/a; echo > {tmp_path}/b; echo 5")]
    assert run_lanes(dev, first, second) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[:-1] == ["1", "2", "3", "4", "5"]
    assert lines[-1].strip("=") == " 0 passed in 1.50s "
    assert (tmp_path / "artifacts/three.log").read_text().split() == ["4", "5"]


def test_a_lane_that_is_through_takes_what_the_other_would_come_to_last(dev: ModuleType, tmp_path: Path) -> None:
    # The second lane's first waits for its last: alone it would wait for ever.
    os.mkfifo(tmp_path / "a")
    second = [("three", f"cat {tmp_path}/a"), ("four", "true"), ("five", f"echo > {tmp_path}/a")]
    assert run_lanes(dev, [("one", "true")], second) == 0


def test_without_an_image_no_guest_is_tried(
    dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_lanes(dev, [("image", "exit 1"), ("vm", f"touch {tmp_path}/ran")]) == 1
    assert not (tmp_path / "ran").exists()
    output = capsys.readouterr()
    assert "left out: the guest image could not be built" in output.out
    assert "FAILED vm" in output.err


def test_last_line_adds_up_the_reports(dev: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, counts in {"unit": 'tests="10" failures="1" errors="0" skipped="2"', "vm": 'tests="5"'}.items():
        (tmp_path / f"artifacts/{name}.xml").write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    (tmp_path / "artifacts/killed.xml").write_text("<testsuites>")
    assert run_lanes(dev, [("unit", "exit 1"), ("vm", "true")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.strip("=") == " 1 failed, 12 passed, 2 skipped, failed sessions: unit in 1.50s "


def test_program_that_is_not_there_fails_its_session(dev: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    part = dev.session("unit", ["/nowhere/python"])
    dev.run_lane(deque([part]), deque())
    dev.show(part)
    assert part.result[0][0] == 1
    assert "can't be started" in capsys.readouterr().out
