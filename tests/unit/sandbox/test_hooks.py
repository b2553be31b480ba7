"""Hooks of the OCI specification, with real programs."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_runtime.errors import HostError, SandboxError
from kata_runtime.sandbox.hooks import AFTER_END, BEFORE_START, HookState, run_hooks

STATE = HookState("box", "creating", 4711, "/bundle", {"engine": "test"})


def hook(directory: Path, script: str, name: str = "hook", **more: Any) -> dict[str, Any]:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"path": str(path), **more}


async def test_a_hook_is_told_the_state(tmp_path: Path) -> None:
    told = hook(tmp_path, f'cat > {tmp_path}/state; echo "$1 $KEY ${{HOME-unset}}" > {tmp_path}/rest')
    told |= {"args": ["name", "argument"], "env": ["KEY=a=b", "PATH=/usr/bin:/bin"]}
    await run_hooks({"createRuntime": [told]}, BEFORE_START, STATE, strict=True)
    assert json.loads((tmp_path / "state").read_text()) == {
        "ociVersion": "1.0.2",
        "id": "box",
        "status": "creating",
        "pid": 4711,
        "bundle": "/bundle",
        "annotations": {"engine": "test"},
    }
    assert (tmp_path / "rest").read_text() == "argument a=b unset\n"


async def test_a_program_is_called_what_it_wants_to_be(tmp_path: Path) -> None:
    """Docker's hook is /proc/PID/exe, and knows by argv[0] what to do."""
    arguments = ["libnetwork-setkey", "-c", f'echo "$0" > {tmp_path}/name']
    await run_hooks({"prestart": [{"path": "/bin/sh", "args": arguments}]}, BEFORE_START, STATE, strict=True)
    assert (tmp_path / "name").read_text() == "libnetwork-setkey\n"


async def test_a_hook_that_fails_ends_the_creation(tmp_path: Path) -> None:
    first = hook(tmp_path, "echo no network left >&2; exit 3", "first")
    second = hook(tmp_path, f"touch {tmp_path}/ran", "second")
    hooks = {"prestart": [first], "createRuntime": [second], "poststop": [first, second]}
    with pytest.raises(SandboxError, match=r"prestart hook .*first failed \(exit status 3\): no network left"):
        await run_hooks(hooks, BEFORE_START, STATE, strict=True)
    assert not (tmp_path / "ran").exists()
    # At the end all are run, whatever they say.
    await run_hooks(hooks, AFTER_END, STATE, strict=False)
    assert (tmp_path / "ran").exists()


async def test_a_hook_that_hangs_or_is_not_there(tmp_path: Path) -> None:
    hanging = hook(tmp_path, "exec sleep 1000", timeout=1)
    with pytest.raises(SandboxError, match="did not end within 1 s"):
        await run_hooks({"prestart": [hanging]}, BEFORE_START, STATE, strict=True)
    with pytest.raises(HostError, match="No such file"):
        await run_hooks({"prestart": [{"path": "/no/such"}]}, BEFORE_START, STATE, strict=True)


async def test_a_hook_ends_with_its_caller(tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    running = hook(tmp_path, f"echo $$ > {fifo}; exec sleep 1000")
    task = asyncio.create_task(run_hooks({"prestart": [running]}, BEFORE_START, STATE, strict=True))
    pid = int(await asyncio.to_thread(fifo.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()
