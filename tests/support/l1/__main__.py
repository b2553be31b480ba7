"""What `nox -s nested` runs: builds L1 where its inputs have changed, boots it, and runs tests/nested in it."""

import argparse
import fcntl
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree

from kata_runtime.errors import KataError
from kata_runtime.image import DEFAULT_OUTPUT
from support.kata import build_image
from support.l1.machine import Machine, nested_kvm
from support.l1.product import ROOT, make_product
from support.l1.userland import CACHE, locked, userland

SHARE = ROOT / "artifacts/nested"
REPORT = ROOT / "artifacts/nested.xml"
# Minutes. What CI gives it is in `dev`.
TIMEOUT = 30.0


def main() -> int:
    """The exit status is pytest's; 1 where L1 could not tell one."""
    line = parser()
    options = line.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    if os.geteuid() != 0:
        line.exit(2, "nested: building and booting L1 needs root: sudo .venv/bin/python -m nox -s nested\n")
    if options.shell and not sys.stdin.isatty():
        line.exit(2, "nested: --shell needs a terminal on stdin\n")
    signal.signal(signal.SIGALRM, _late)
    if not options.shell:
        # L1's own end comes first; this is for builds, which wait for mirrors and locks.
        signal.alarm(int(options.timeout * 60) + 30)
    try:
        return _run(options)
    except KeyboardInterrupt:
        say("interrupted; L1 is gone")
        return 130
    except TimeoutError:
        say(f"L1 could not be built within {options.timeout:g} minutes")
        return 1
    except KataError as error:
        line.exit(2, f"nested: {error}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(prog="nox -s nested --", description=__doc__)
    what = line.add_mutually_exclusive_group()
    what.add_argument("--shell", action="store_true", help="a shell in L1 instead of tests; Ctrl-A X ends it at once")
    what.add_argument("--command", metavar="COMMAND", default="", help="a shell command in L1 instead of tests")
    what.add_argument("--bench", action="store_true", help="measure instead of testing")
    line.add_argument("-k", metavar="EXPRESSION", default="", help="select tests, as pytest does")
    line.add_argument("-x", action="store_true", help="stop at the first failure")
    line.add_argument("--without", metavar="MODULE", default="", help="leave a kernel module out of L1")
    line.add_argument("--renew", action="store_true", help="make L1's userland anew, from today's packages")
    line.add_argument(
        "--timeout", metavar="MINUTES", type=float, default=TIMEOUT, help="for the whole run (default: %(default)g)"
    )
    return line


def _run(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.timeout * 60
    SHARE.parent.mkdir(exist_ok=True)
    lock = os.open(SHARE.parent, os.O_RDONLY | os.O_CLOEXEC)  # held to the end of this process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KataError(f"another run of this checkout writes to {SHARE}") from None
    shutil.rmtree(SHARE, ignore_errors=True)
    SHARE.mkdir(parents=True)
    REPORT.unlink(missing_ok=True)
    build_image()
    image = Path(os.environ.get("KATA_IMAGE_DIR") or DEFAULT_OUTPUT)
    with tempfile.TemporaryDirectory(prefix="nested-", dir=_cache()) as scratch:
        product = Path(scratch) / "product.img"
        with locked(say):
            made = userland(say, renew=options.renew)
            make_product(made, image, product, say)
        say(f"booting L1 ({'KVM' if nested_kvm() else 'emulated, with SVM'}; its console: {SHARE}/l1/console.log)")
        machine = Machine(made, product, SHARE, order(options))
        status = machine.run(deadline - time.monotonic())
    if options.shell:
        return 0
    return _report(status, options)


def _cache() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def order(options: argparse.Namespace) -> dict[str, str]:
    """What L1's init is told, as shell variables."""
    columns, rows = shutil.get_terminal_size()
    pytest = ["/opt/kata/bin/python", "-u", "-m", "pytest", "tests/nested", "-v", "--junitxml=artifacts/nested.xml"]
    pytest += [
        "--color=no",
        "-p",
        "no:cacheprovider",
        *(["-k", options.k] if options.k else []),
        *(["-x"] if options.x else []),
    ]
    bench = ["/opt/kata/bin/python", "-u", "-m", "bench.nested"]
    return {
        "command": options.command or shlex.join(bench if options.bench else pytest),
        "shell": "yes" if options.shell else "",
        "without": options.without,
        "term": os.environ.get("TERM", "vt100"),
        "columns": str(columns),
        "rows": str(rows),
    }


def _report(status: int | None, options: argparse.Namespace) -> int:
    """Say what came out, and where to look; the exit status."""
    inside = SHARE / "nested.xml"
    if inside.exists():
        shutil.move(inside, REPORT)
    proof = SHARE / "proof.txt"
    if proof.exists():
        say("what L2 ran on (artifacts/nested/proof.txt):")
        print(proof.read_text(), flush=True)
    if REPORT.exists():
        print(times(REPORT), flush=True)
    if status == 0:
        return 0
    failures = SHARE / "failures.txt"
    if failures.exists() and not REPORT.exists():  # else pytest has printed them
        print(failures.read_text(), flush=True)
    if status is None:
        say(f"L1 was ended: it took longer than {options.timeout:g} minutes; the last line above is where it was")
    elif not (SHARE / "l1/status").exists():
        say("L1 ended before its tests did; the end of its console:")
        console = (SHARE / "l1/console.log").read_text(errors="replace").splitlines()
        print("\n".join(f"  | {line}" for line in console[-20:]), flush=True)
    for path in sorted(path for path in SHARE.rglob("*") if path.is_file() and path.stat().st_size):
        say(f"kept: {path.relative_to(ROOT)}")
    return status or 1


def times(report: Path) -> str:
    """The tests that ran, with their times."""
    lines = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        lines.append(f"  {float(case.get('time', 0)):7.1f} s  {outcome:8} {case.get('name')}")
    return "\n".join(lines)


def say(text: str) -> None:
    """Progress, on the way to somebody who waits."""
    print(f"nested: {text}", file=sys.stderr, flush=True)


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
