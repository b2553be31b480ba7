"""`nox -s fuzz -- --minutes N`: every target under atheris for its share of the time, and what came of it.

Where this Python has no atheris (it has wheels for 3.11 to 3.13), inputs are made by the same edits, but nothing tells
which of them reached new code.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

from support.fuzz import corpus
from support.fuzz.counts import Count, add, render
from support.fuzz.odd import apply, rolled
from support.fuzz.table import TARGETS
from support.fuzz.target import LARGEST, Target

# MiB that one process may have, and seconds that one input may take by the clock.
MEMORY, SLOW = 1024, 30
# Of what is kept with --keep: inputs of a target, bytes of one.
MOST, LONGEST = 24, 1024


class Outcome(NamedTuple):
    """Of one target: how often it ran, and what was found, one line each."""

    runs: int
    found: list[str]


def guided(target: Target, seconds: int, place: Path) -> Outcome:
    """Run a target under atheris; its corpus and findings are in `place`."""
    inputs, findings = place / "corpus" / target.name, place / "found"
    for directory in (inputs, findings):
        directory.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-rss_limit_mb={MEMORY}", f"-timeout={SLOW}"]
    options += [f"-max_len={LARGEST}", "-verbosity=0", f"-artifact_prefix={findings}/{target.name}-fatal-"]
    argv = [sys.executable, "-P", "-m", "support.fuzz.guided", target.parse.__module__]
    argv += [target.name, str(findings), str(inputs), *options]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr
    runs = re.search(r"number_of_executed_units:\s*(\d+)", said)
    found = [line.removeprefix("FOUND ") for line in said.splitlines() if line.startswith("FOUND ")]
    if done.returncode != 0 or runs is None:
        found.append("\n    ".join(said.splitlines()[-12:]))
    return Outcome(int(runs[1]) if runs else 0, found)


def blind(target: Target, seconds: int, place: Path) -> Outcome:
    """The same without a guide."""
    from support.fuzz.guided import place_of

    random, found, runs, until = Random(), dict[str, str](), 0, time.monotonic() + seconds
    inputs = [*target.seeds, *corpus.kept(target.name)]
    (place / "found").mkdir(parents=True, exist_ok=True)
    while time.monotonic() < until:
        data = apply(target, random.choice(inputs), rolled(random))
        runs += 1
        try:
            target.check(data)
        except AssertionError as error:
            if (where := place_of(error)) not in found:
                found[where] = f"{where}: {error}"
                (place / "found" / f"{target.name}-{len(found)}").write_bytes(data)
    return Outcome(runs, list(found.values()))


def keep(target: Target, place: Path) -> int:
    """Add to the kept corpus some small inputs that reached what nothing before them did; how many."""
    paths = (path for path in (place / "corpus" / target.name).iterdir() if not path.name.startswith("seed-"))
    small = sorted(data for path in paths if len(data := path.read_bytes()) <= LONGEST)
    room = MOST - len(corpus.kept(target.name))
    return corpus.keep(target.name, Random(1).sample(small, min(room, len(small)))) if room > 0 else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="for all targets together")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--record", action="store_true", help="add the counts to docs/fuzzing.md")
    parser.add_argument("--keep", action="store_true", help="add to tests/fuzz/corpus what reached new code")
    parser.add_argument("--place", type=Path, default=Path(".cache/fuzz"), help="for inputs and findings")
    given = parser.parse_args()
    run = guided if importlib.util.find_spec("atheris") else blind
    seconds = max(1, round(given.minutes * 60 / len(given.only)))
    counts, total = {}, 0
    for name in given.only:
        outcome = run(TARGETS[name], seconds, given.place.absolute())
        counts[name] = Count(outcome.runs, seconds)
        total += len(outcome.found)
        kept = f", {keep(TARGETS[name], given.place)} inputs kept" if given.keep and run is guided else ""
        print(f"{name:16} {outcome.runs:9} runs in {seconds} s, {len(outcome.found)} findings{kept}", flush=True)
        for line in outcome.found:
            print(f"    {line}", flush=True)
    if given.record:
        add(counts)
        render()
    print(f"{sum(count.runs for count in counts.values())} runs, {total} findings (inputs: {given.place}/found)")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
