"""What the shim does without, and that nobody misses it."""

import subprocess
import sys

PROGRAM = """
import sys
from kata_runtime.shim.memory import spare
spare()
import asyncio
import qemu.qmp
assert "_ssl" not in sys.modules
from kata_traces.read.metrics import expose
print(expose([], openmetrics=True))
"""


def test_metrics_without_ssl_at_first() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("# EOF\n\n")
