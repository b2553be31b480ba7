"""What `delete` does for a sandbox whose shim was killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kata_common import places
from kata_runtime.shim import cleanup
from kata_runtime.shim.cleanup import VM_PID_FILE, KataCleanup
from kata_runtime.shim.grouping import SINGLE, Group
from kata_runtime.shim.launch import Launch


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A bundle, and a sandbox's directory; removing it has its own tests."""
    (tmp_path / "run" / "box").mkdir(parents=True)
    monkeypatch.setattr(places, "RUN_DIR", f"{tmp_path}/run")
    monkeypatch.setattr(places, "LAYERS_DIR", f"{tmp_path}/layers")
    monkeypatch.setattr(KataCleanup, "_remove", lambda *_: (tmp_path / "run" / "box").rmdir())
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / VM_PID_FILE).write_text("4711")
    return Launch(namespace="ns", container_id="box", bundle=str(bundle), group=Group(SINGLE, "box"))


def write_hook(launch: Launch, script: str) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    spec = {"process": {"args": ["true"], "cwd": "/"}, "root": {"path": "/gone"}, "hooks": {"poststop": [hook]}}
    (Path(launch.bundle) / "config.json").write_text(json.dumps(spec))


def test_its_poststop_hooks_are_run_once(launch: Launch, tmp_path: Path) -> None:
    """After its directories are gone. Where there are none the shim has done all of it."""
    write_hook(launch, f"cat > {tmp_path}/told; ls {tmp_path}/run >> {tmp_path}/runs; echo . >> {tmp_path}/runs")
    assert [KataCleanup().sandbox(launch) for _ in range(2)] == [4711, 4711]
    told = json.loads((tmp_path / "told").read_text())
    assert (told["id"], told["status"], told["pid"], told["bundle"]) == ("box", "stopped", 4711, launch.bundle)
    assert (tmp_path / "runs").read_text() == ".\n"


@pytest.mark.slow
def test_a_hook_that_hangs_does_not_hold_up_the_rest(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_HOOKS", 0.3)
    write_hook(launch, "exec sleep 1000")
    assert KataCleanup().sandbox(launch) == 4711


def test_who_has_no_hooks_pays_nothing() -> None:
    code = "import sys, kata_runtime.shim.cleanup; sys.exit('asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
