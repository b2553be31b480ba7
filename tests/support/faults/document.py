"""docs/faults.md, made of the table and of a run of its tests."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.faults.scene import Outcome
from support.faults.table import ELSEWHERE, ROWS, Row

__all__ = ["DOCUMENT", "document", "main", "record"]

DOCUMENT = Path(__file__).parents[3] / "docs/faults.md"
_TEXT = """# Faults

What is broken when, and what whoever runs a container is told: made by `nox -s faults` (`tests/support/faults`). Each
row is a test. The error names the cause and quotes the helper; it comes within the time that the test allows; the exit
status is 125 where it is not the workload's; afterwards there is no process, mount, socket or directory of the sandbox.
Seconds are those from the fault, or from the start of the command, to its end (KATA_FAULTS_RECORD=FILE keeps them).

| process | stage | fault | seconds | status | error |
|---|---|---|---:|---:|---|
{rows}

## Tried by other suites

| process | stage | fault | what comes of it | test |
|---|---|---|---|---|
{elsewhere}

## Not tried

- Helpers that fail in the middle of an exec, of a stream or of a deletion, but for those above; resets of single vsock
  connections; crun and the agent killed in a guest that goes on.
- Clocks that jump: the host's is not ours to set in a test; the guest's is set back within seconds
  (`tests/vm/test_clock.py`), and spans are in the host's monotonic time.
- A host without memory for all: a sandbox's own cgroup is in docs/security.md; beyond it the kernel chooses.
- `crun` that hangs in the guest: a call to the agent has a deadline, and the container's start fails by it.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def document(recorded: Mapping[str, Any]) -> str:
    """The document; what was recorded has status, error and seconds by the row's name."""
    rows = []
    for row in ROWS:
        found = recorded.get(row.name, {"seconds": "", "status": row.status, "said": " … ".join(row.says)})
        cells = (row.process, row.stage, row.fault, found["seconds"], found["status"], _cell(found["said"]))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    others = [f"| {r.process} | {r.stage} | {r.fault} | {r.what} | `tests/{r.test}` |" for r in ELSEWHERE]
    return _TEXT.format(rows="\n".join(rows), elsewhere="\n".join(others))


def record(path: Path, row: Row, outcome: Outcome) -> None:
    """Add what came of a row."""
    known = json.loads(path.read_text()) if path.exists() else {}
    lines = [line.removeprefix("kata-runtime: ") for line in outcome.said.splitlines() if "WARNING" not in line]
    said = (
        " ".join(line.strip() for line in lines if not line.startswith("  hint")) or "none: it ends as it was told to"
    )
    known[row.name] = {"seconds": round(outcome.seconds, 1), "status": outcome.status, "said": said[:300]}
    path.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    """Make the document of what KATA_FAULTS_RECORD names."""
    recorded = json.loads(Path(os.environ["KATA_FAULTS_RECORD"]).read_text())
    DOCUMENT.write_text(document(recorded))


if __name__ == "__main__":
    main()
