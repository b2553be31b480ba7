"""Builds Jaeger's all-in-one from Go modules, where the Go proxy is reachable: eight minutes of CPU, then never again.

Its web pages are not part of the module, so the program serves a placeholder in their place; its API is whole.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "v1.76.0"
PACKAGE = "github.com/jaegertracing/jaeger/cmd/all-in-one"
DIRECTORY = Path(os.environ.get("KATA_JAEGER_DIR", "/var/cache/kata-jaeger"))


def binary() -> Path:
    """Where it is, or will be."""
    return DIRECTORY / f"jaeger-{VERSION}"


def main() -> int:
    """Build it where it is missing."""
    if binary().exists():
        print(f"{binary()} is there")
        return 0
    go = shutil.which("go")
    if go is None:
        print("go is missing: apt install golang (1.25 or later)", file=sys.stderr)
        return 1
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIRECTORY) as name:
        module = Path(name)
        (module / "go.mod").write_text("module kata.test/jaeger\n\ngo 1.24\n")
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPATH": str(DIRECTORY / "go")}
        output = module / "jaeger"
        for arguments in (["get", f"{PACKAGE}@{VERSION}"], ["build", "-trimpath", "-o", str(output), PACKAGE]):
            subprocess.run([go, *arguments], cwd=module, env=environment, check=True)
        output.rename(binary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
