"""OCI bundles for tests, and what runc says of the same one."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["make_bundle", "run_by_runc", "runc_missing"]

IMAGE = Path(os.environ.get("KATA_IMAGE_DIR") or "/var/lib/kata-containers/image")


def runc_missing() -> str:
    """Why there is no runc to ask; empty where there is one."""
    return "" if shutil.which("runc") else "runc is not installed"


def make_bundle(directory: Path, *args: str, **changes: Any) -> Path:
    """A bundle of busybox that runs `args`. `changes` are merged into what `runc spec` writes, lists replaced."""
    directory.mkdir()
    shutil.copytree(IMAGE / "default-rootfs", directory / "rootfs", symlinks=True)
    subprocess.run(["runc", "spec"], cwd=directory, check=True)
    spec = json.loads((directory / "config.json").read_text())
    own = {"process": {"terminal": False, "args": list(args)}, "root": {"readonly": False}}
    merged = merge(merge(spec, own), changes)
    (directory / "config.json").write_text(json.dumps(merged))
    return directory


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both have it the other's, but for what are mappings in both."""
    result = dict(one)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merge(result[name], value) if both else value
    return result


def run_by_runc(bundle: Path, name: str) -> "subprocess.CompletedProcess[bytes]":
    """`runc run`, to its end."""
    argv = ["runc", "run", "--bundle", str(bundle), name]
    return subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60)
