"""What a helper process is kept to besides its user: cgroups, limits, capabilities, namespaces.

It is put there by small programs that become one another (a shell, util-linux' unshare and setpriv) before the helper's
own code runs. A shim with threads can't do such things safely after a fork, and if it did them from outside, the helper
would have run outside for a moment.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kata_runtime.errors import HostError

__all__ = ["Cage", "cage_prefix", "capability_options", "put_into"]

# $1 is the score or empty, $2 the number of descriptors or empty (who may not have so many keeps what we have). Then
# come the files to join by, up to --; 0 is the process itself (cgroups(7)).
_ENTER = """cd / || exit 125
ulimit -c 0
if [ -n "$1" ]; then echo "$1" >/proc/self/oom_score_adj || exit 125; fi
if [ -n "$2" ]; then ulimit -n "$2" 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"; fi
shift 2
while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Cage:
    """`cgroups` are the cgroup.procs files of its cgroups; `oom_score_adj` as in proc(5), None leaves what we have.

    `files` is how many descriptors it may have; 0 leaves what we may.
    `capabilities` are all that it can ever have, by setpriv's names (`chown`). None of its programs dumps core.
    `network` is the path of a network namespace to run in, `mounts` that of a mount namespace (see `root`);
    `namespaces` are those of its own, by unshare's names (`net`, `ipc`, `uts`).
    """

    cgroups: tuple[str, ...] = ()
    oom_score_adj: int | None = None
    files: int = 0
    capabilities: tuple[str, ...] = ()
    network: str = ""
    mounts: str = ""
    namespaces: tuple[str, ...] = ()


def cage_prefix(cage: Cage, find: Callable[[str, str], str]) -> list[str]:
    """The start of the command line of a program that is to be in this cage.

    `find` tells the path of a program by its name and Debian package. setpriv, which takes the capabilities away, comes
    last and is the caller's: see `capability_options`.
    """
    score = "" if cage.oom_score_adj is None else str(cage.oom_score_adj)
    prefix = [find("sh", "dash"), "-c", _ENTER, "cage", score, str(cage.files or ""), *cage.cgroups, "--"]
    joined = [f"--{kind}={path}" for kind, path in (("net", cage.network), ("mount", cage.mounts)) if path]
    if joined:
        prefix += [find("nsenter", "util-linux"), *joined]
    if cage.namespaces:
        prefix += [find("unshare", "util-linux"), *(f"--{name}" for name in cage.namespaces)]
    return prefix


def capability_options(cage: Cage) -> list[str]:
    """setpriv's options for what the program can ever have, and that it inherits nothing."""
    kept = ",".join(["-all", *(f"+{name}" for name in cage.capabilities)])
    return ["--bounding-set", kept, "--inh-caps", "-all", "--ambient-caps", "-all"]


def put_into(cage: Cage, pid: int) -> None:
    """Have a process that runs, and its children, in the cgroups of this cage, and as expendable as it says.

    For one that was there before its cage was known. The memory that it has already stays counted where it was.

    Raises:
        HostError: it can't be.
    """
    try:
        for each in _family(pid):
            for procs in cage.cgroups:
                Path(procs).write_text(str(each))
            if cage.oom_score_adj is not None:
                Path(f"/proc/{each}/oom_score_adj").write_text(str(cage.oom_score_adj))
    except OSError as error:
        raise HostError(f"process {pid} can't be put into the sandbox's cgroup: {error.strerror}") from error


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
