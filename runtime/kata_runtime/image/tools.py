"""The image build's one door to child processes."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which

from kata_runtime.errors import ImageError
from kata_runtime.process import absolute

__all__ = ["run"]

# Debian package of each tool, for the hint that a missing one gives.
PACKAGES = {
    "apt-config": "apt",
    "apt-get": "apt",
    "apt-cache": "apt",
    "chroot": "coreutils",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
}
# Sbin is not on the path of every user, root's shell included.
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Lines of a failed tool's output that an error shows; the last ones say what went wrong.
TAIL_LINES = 6


def run(
    argv: Sequence[str | Path],
    *,
    doing: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
    timeout: float = 600,
) -> str:
    """Run a tool to its end and return its standard output.

    `doing` completes the sentence "can't ...", `env` is added to an otherwise clean environment, `timeout` is in
    seconds. Raises ImageError where the tool is missing, fails or takes longer than that.
    """
    name = str(argv[0])
    search = os.pathsep.join(filter(None, [absolute(os.environ.get("PATH", "")), *SEARCH]))
    path = which(name, path=search)
    if path is None:
        package = PACKAGES.get(name, name)
        raise ImageError(f"can't {doing}: {name} is missing", hint=f"install it: apt-get install {package}")
    environment = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith("PIP_")}
    environment |= {"LC_ALL": "C.UTF-8", "PATH": search}
    try:
        done = subprocess.run(
            [path, *map(str, argv[1:])],
            cwd=cwd,
            env=environment | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"can't {doing}: {name} did not end within {timeout:g} s", hint=hint) from error
    except OSError as error:
        raise ImageError(f"can't {doing}: {name} can't be started: {error}", hint=hint) from error
    if done.returncode:
        if "No space left on device" in done.stderr:
            hint = "free some space"
        raise ImageError(
            f"can't {doing}: {name} failed with status {done.returncode}: {_tail(done.stderr or done.stdout)}",
            hint=hint,
        )
    return done.stdout


# What a tool needs to reach a mirror through the host's proxy, and to find a home and a place for temporary files.
_KEPT = frozenset(
    {"HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}
)


def _tail(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-TAIL_LINES:]) or "it said nothing"
