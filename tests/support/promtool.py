"""Prometheus' own judge of metrics: on PATH, or out of Debian's package, which is fetched once and not installed."""

import re
import shutil
import subprocess
from pathlib import Path

from kata_common.files import Lock

__all__ = ["judge", "lint"]

CACHE = Path(__file__).parents[2] / ".cache" / "prometheus"
# What promtool's rules have against names that are Kata's.
_KATAS = re.compile(
    r"kata_\w+_histogram_milliseconds "
    r"(?:use base unit \"seconds\" instead of \"milliseconds\"|metric name should not include type 'histogram')"
    r'|kata_monitor_running_shim_count non-histogram and non-summary metrics should not have "_count" suffix'
)


def _promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    program = CACHE / "usr/bin/promtool"
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = Lock(CACHE / "lock")
    if not lock.acquire():
        assert Lock.await_free(CACHE / "lock", 300)
    try:
        if not program.exists():
            subprocess.run(["apt-get", "-q", "download", "prometheus"], cwd=CACHE, check=True, capture_output=True)
            [package] = CACHE.glob("prometheus_*.deb")
            partial = CACHE / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run(["dpkg-deb", "--extract", package, partial], check=True)
            program.parent.mkdir(parents=True, exist_ok=True)
            (partial / "usr/bin/promtool").replace(program)
            shutil.rmtree(partial)
            package.unlink()
    finally:
        lock.release()
    return str(program)


def judge(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run promtool."""
    return subprocess.run([_promtool(), *arguments], input=text, capture_output=True, text=True, check=False)


def lint(text: str) -> list[str]:
    """What `promtool check metrics` has against metrics, but for what it has against Kata's names."""
    done = judge("check", "metrics", text=text)
    # 3: there is something to say, but it can be read.
    assert done.returncode in (0, 3), done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line and not _KATAS.fullmatch(line)]
