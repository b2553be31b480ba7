"""Process, stage, fault: how it is made, and what must come of it.

What is tried elsewhere stands here too, by its test, so that the document has it all.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kata_common import places
from support.faults.scene import Outcome, Scene

__all__ = ["ELSEWHERE", "ROWS", "Elsewhere", "Row"]

QEMU, PYTHON = "qemu-system-x86_64", Path(sys.executable).resolve().name


@dataclass(frozen=True)
class Row:
    """A fault. `says` must be in the error, among it the helper's own words; `within` seconds of the fault it is told.

    The status is 125 for what is not the workload's, and afterwards nothing is left of the sandbox.
    """

    process: str
    stage: str
    fault: str
    make: Callable[[Scene], Outcome]
    says: tuple[str, ...]
    within: float
    status: int = 125

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.process}, {self.stage}, {self.fault}"


@dataclass(frozen=True)
class Elsewhere:
    """A fault that a test of another suite makes: `test` is FILE::NAME below tests/."""

    process: str
    stage: str
    fault: str
    what: str
    test: str


def _standin(process: str, script: str) -> Callable[[Scene], Outcome]:
    return lambda scene: scene.standin(process, script).run()


def _hung(process: str) -> Callable[[Scene], Outcome]:
    return lambda scene: scene.impatient().standin(process, "exec sleep 1000").run()


def _full(place: Path) -> Callable[[Scene], Outcome]:
    def make(scene: Scene) -> Outcome:
        with scene.full(place):
            return scene.run()

    return make


def _missing(key: str) -> Callable[[Scene], Outcome]:
    def make(scene: Scene) -> Outcome:
        scene.kata.configure("hypervisor.qemu", **{key: "/nowhere/program"})
        return scene.run()

    return make


def _unanswered(program: str, then: signal.Signals | None = None) -> Callable[[Scene], Outcome]:
    def make(scene: Scene) -> Outcome:
        scene.kata.configure("agent.kata", health_check_request_timeout_ms=2000)
        return scene.strike(program, signal.SIGSTOP, then=then)

    return make


REFUSES = "echo \"unknown option 'nonsense'\" >&2; exit 3"
DIES = "echo 'about to go' >&2; kill -9 $$"
ENDS = "echo 'nothing to do' >&2; exit 0"
BACKEND = "the vsock backend"
ROWS = (
    Row(
        "virtiofsd",
        "create",
        "refuses its arguments",
        _standin("virtiofsd", REFUSES),
        ("virtiofsd did not start (exit status 3); virtiofsd said: unknown option 'nonsense'", "virtio_fs_extra_args"),
        10,
    ),
    Row(
        "virtiofsd",
        "create",
        "kill -9",
        _standin("virtiofsd", DIES),
        ("virtiofsd did not start (killed by signal 9); virtiofsd said: about to go",),
        10,
    ),
    Row(
        "virtiofsd",
        "create",
        "ends without a reason",
        _standin("virtiofsd", ENDS),
        ("virtiofsd did not start (exit status 0); virtiofsd said: nothing to do",),
        10,
    ),
    Row("virtiofsd", "create", "hangs", _hung("virtiofsd"), ("virtiofsd has not begun to serve",), 20),
    Row(
        "QEMU",
        "create",
        "refuses its arguments",
        _standin("QEMU", REFUSES),
        ("QEMU did not start (exit status 3); QEMU said: unknown option 'nonsense'",),
        10,
    ),
    Row(
        "QEMU",
        "create",
        "kill -9",
        _standin("QEMU", DIES),
        ("QEMU did not start (killed by signal 9); QEMU said: about to go",),
        10,
    ),
    Row("QEMU", "create", "hangs", _hung("QEMU"), ("QEMU's monitor did not answer: nothing within 6 s",), 20),
    Row("QEMU", "create", "is missing", _missing("path"), ("/nowhere/program was not found", "apt install"), 10),
    Row(
        BACKEND,
        "create",
        "fails at its start",
        _standin(BACKEND, REFUSES),
        ("the vsock backend did not start (exit status 3); the vsock backend said: unknown option 'nonsense'",),
        10,
    ),
    Row(
        BACKEND,
        "create",
        "kill -9",
        _standin(BACKEND, DIES),
        ("the vsock backend did not start (killed by signal 9)",),
        10,
    ),
    Row(BACKEND, "create", "hangs", _hung(BACKEND), ("the vsock backend has not begun to serve",), 20),
    Row(
        BACKEND,
        "start",
        "SIGSTOP",
        _unanswered(PYTHON),
        ("the VM ended while a container was running (the agent has not answered for 2 s)",),
        20,
    ),
    Row(
        "virtiofsd",
        "delete",
        "SIGSTOP",
        lambda scene: scene.strike("virtiofsd", signal.SIGSTOP, then=signal.SIGTERM),
        (),
        30,
        status=143,
    ),
    Row(
        "QEMU",
        "delete",
        "SIGSTOP",
        _unanswered(QEMU, then=signal.SIGTERM),
        ("the VM ended while a container was running (the agent has not answered for 2 s)",),
        30,
    ),
    Row(
        "the runtime",
        "create",
        "no descriptors",
        lambda scene: scene.limited("RLIMIT_NOFILE", 20).run(),
        ("Too many open files",),
        10,
    ),
    Row(
        "QEMU",
        "create",
        "no memory",
        lambda scene: scene.limited("RLIMIT_AS", 1 << 30).run(),
        ("QEMU did not start", "memory"),
        20,
    ),
    Row(
        "the runtime",
        "create",
        f"disk full: {places.RUN_DIR}",
        _full(Path(places.RUN_DIR)),
        ("No space left on device", "is the disk full?"),
        10,
    ),
    Row(
        "the runtime",
        "create",
        f"disk full: {places.LAYERS_DIR}",
        _full(Path(places.LAYERS_DIR)),
        ("No space left on device", "is the disk full?"),
        10,
    ),
)

_DEATHS, _FAILURES = "vm/test_run_deaths.py", "vm/test_failures.py"
ELSEWHERE = (
    Elsewhere(
        "QEMU", "start", "kill -9", "the VM ended … (killed by signal 9)", f"{_DEATHS}::test_a_vm_that_dies_is_an_error"
    ),
    Elsewhere(
        "QEMU",
        "start",
        "SIGSTOP",
        "the agent has not answered for … s",
        f"{_DEATHS}::test_a_guest_that_hangs_is_an_error",
    ),
    Elsewhere(
        "virtiofsd",
        "start",
        "kill -9",
        "virtiofsd ended unexpectedly, and its last words",
        f"{_DEATHS}::test_a_helper_that_dies_ends_the_run",
    ),
    Elsewhere(
        BACKEND,
        "start",
        "kill -9",
        "the vsock backend ended unexpectedly",
        f"{_DEATHS}::test_a_helper_that_dies_ends_the_run",
    ),
    Elsewhere(
        "the runtime",
        "start",
        "kill -9",
        "its helpers end; the next run clears what is left",
        f"{_DEATHS}::test_a_killed_runtime_takes_everything_with_it",
    ),
    Elsewhere(
        "the guest",
        "create",
        "panic, out of memory",
        "the kernel's own words",
        f"{_FAILURES}::test_every_view_tells_what_stderr_told",
    ),
    Elsewhere(
        "the guest",
        "create",
        "hangs",
        "the agent did not become ready within … s; its console's end",
        "vm/test_run_errors.py::test_a_guest_that_never_becomes_ready",
    ),
    Elsewhere(
        "the runtime",
        "export",
        "disk full: trace_dir",
        "the run goes on; the trace says that it is not whole",
        f"{_FAILURES}::test_a_full_disk_costs_spans_and_says_so",
    ),
    Elsewhere(
        "the collector",
        "export",
        "away, and comes",
        "spans wait in the store",
        "contract/test_forwarder_process.py::test_a_collector_that_is_away_and_comes",
    ),
    Elsewhere(
        "the forwarder",
        "export",
        "kill -9",
        "what it left is sent by the next one",
        "contract/test_forwarder_process.py::test_killed_and_started_again",
    ),
    Elsewhere(
        "containerd",
        "create",
        "nobody waits any more",
        "the shim clears up by itself",
        "containerd/test_cancelled.py::test_a_task_that_nobody_waits_for",
    ),
)
