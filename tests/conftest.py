"""What all tests share: a directory for what a failed test leaves to read, and a proof that nothing else is left.

Tests below tests/vm, tests/faults and tests/hostile are marked `vm`. For each of them:

- `artifacts` is a directory that is kept if the test fails (artifacts/<test id>/). Every `kata-runtime` that the test
  starts keeps its sandboxes' logs (console, QEMU, virtiofsd, agent) and traces there, by environment.
- its sandboxes boot, but in the tests of templates and pools: there they are clones of a template, which is made once.
  With KATA_TEST_TEMPLATE=1 they are clones everywhere but in tests that are marked `cold`.
- after it, no process, mount, socket or directory of ours may be left (`support.leaks`).
"""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import pytest

from kata_telemetry import logs
from support import leaks
from support.kata import TEMPLATES_WANTED, Kata, build_image, drop_in, made_template

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
_VM_TESTS = (ROOT / "tests/vm", ROOT / "tests/faults", ROOT / "tests/hostile")
_failed = pytest.StashKey[bool]()
_directory = pytest.StashKey[Path]()


def pytest_configure() -> None:
    with contextlib.suppress(ImportError):  # the guest of `nox -s nested` has no property tests
        import hypothesis

        # How long an example takes is the machine's affair; pytest-timeout ends a test that hangs.
        hypothesis.settings.register_profile("house", deadline=None)
        hypothesis.settings.load_profile("house")
    # CI ends a run with SIGTERM; fixtures must take guests down then, too.
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(directory) for directory in _VM_TESTS):
            item.add_marker(pytest.mark.vm)
    if os.geteuid() != 0 and any(item.get_closest_marker("vm") for item in items):
        raise pytest.UsageError("tests that boot a guest need root: sudo .venv/bin/python -m nox -s vm")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    # Only now is it known whether taking everything down went well, too.
    if report.when == "teardown" and _directory in item.stash and not item.stash[_failed]:
        shutil.rmtree(item.stash[_directory])
    return report


@pytest.fixture
def artifacts(request: pytest.FixtureRequest) -> Path:
    """Directory for what helps to understand a failure; removed again if the test passes."""
    return _artifacts(request.node)


def _artifacts(item: pytest.Item) -> Path:
    if _directory not in item.stash:
        directory = ARTIFACTS / re.sub(r"[^A-Za-z0-9._-]+", "-", item.nodeid).strip("-")[:200]
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        item.stash[_directory] = directory
    return item.stash[_directory]


@pytest.fixture(scope="session", autouse=True)
def _orphans() -> None:
    leaks.adopt_orphans()


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """A sandbox's root is in every line of its process's log; the next test is another sandbox."""
    yield
    logs.set_root(None)


def _clones(item: pytest.Item) -> bool:
    """Whether a test's sandboxes are clones of the tests' template."""
    return TEMPLATES_WANTED or item.path.name in ("test_pool.py", "test_start_paths.py", "test_template.py")


@pytest.fixture(autouse=True)
def _vm_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around each test that boots a guest: its logs and traces go to `artifacts`, and it leaves nothing."""
    if request.node.get_closest_marker("vm") is None:
        yield
        return
    directory = _artifacts(request.node)
    configuration = directory / "configuration.toml"
    configuration.write_text(f'[runtime]\ntrace_dir = "{directory}/traces"\n')
    cold = request.node.get_closest_marker("cold") is not None or not _clones(request.node)
    # Beside whatever configuration.toml the test writes there.
    drop_in(directory, template=not cold)
    environment = {"KATA_LOGS_DIR": str(directory / "logs"), "KATA_CONF_FILE": str(configuration)}
    before = leaks.look()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
    left = leaks.look(before).left_since(before)
    if left:
        (directory / "left-behind.txt").write_text("\n".join(left) + "\n")
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def guest_image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The guest's image, up to date with this checkout's agent, and a template of it."""
    build_image()
    if any(_clones(item) for item in request.session.items):
        with made_template(tmp_path_factory.mktemp("template")):
            yield
    else:
        yield


@pytest.fixture
def kata(artifacts: Path, guest_image: None) -> Kata:
    """A `kata-runtime` with traces and logs among the test's artifacts; tracing is off until the test turns it on."""
    return Kata(artifacts)
