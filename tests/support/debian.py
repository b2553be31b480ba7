"""Trees of Debian 12's packages, as a container's root file system or a machine's, by mmdebstrap."""

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kata_runtime.image import DEFAULT_CACHE
from kata_runtime.image.packages import KEYRINGS, RELEASE, host_mirrors, host_transport

__all__ = ["make_tree", "run_tool", "tree"]

CACHE = DEFAULT_CACHE / "trees"


def tree(*packages: str) -> Path:
    """What these packages and all that they depend on have, unpacked; made once and kept in the cache. To be copied."""
    made = CACHE / hashlib.sha256(" ".join((RELEASE, *sorted(packages))).encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=".new-", dir=CACHE))
            try:
                make_tree(partial / "root", packages, variant="extract")
                # Device nodes: a container has its own, and who copies the tree would read them.
                for node in (partial / "root/dev").iterdir():
                    node.unlink() if not node.is_dir() or node.is_symlink() else node.rmdir()
                # Those of base-files.
                for name in ("mnt", "proc", "run", "sys", "tmp"):
                    (partial / "root" / name).mkdir(exist_ok=True)
                (partial / "root").rename(made)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return made


def make_tree(target: Path, packages: Sequence[str], *, variant: str) -> None:
    """Make it at `target`, of one of mmdebstrap's variants."""
    mirror, security = host_mirrors(Path("/etc/apt"))
    keyring = next(path for path in KEYRINGS if path.is_file())
    sources = [f"deb [signed-by={keyring}] {mirror} {suite} main" for suite in (RELEASE, f"{RELEASE}-updates")]
    sources.append(f"deb [signed-by={keyring}] {security} {RELEASE}-security main")
    settings = ['APT::Install-Recommends "false";', *host_transport()]
    aptopts = [f"--aptopt={setting.removesuffix(';')}" for setting in settings]
    include = f"--include={','.join(packages)}"
    run_tool("mmdebstrap", "--quiet", f"--variant={variant}", include, *aptopts, RELEASE, str(target), *sources)


def run_tool(*argv: str, env: Mapping[str, str] | None = None) -> None:
    """Run a tool to its end; what it said is shown only if it fails, which ends this process."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = "\n".join(re.sub(r"^", "  | ", line) for line in (done.stderr or done.stdout).splitlines()[-12:])
        raise SystemExit(f"{argv[0]} failed with status {done.returncode}:\n{said}")
