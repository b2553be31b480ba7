"""This checkout beside another one, in turns: first output, whole runs, `ctr run`, `ctr tasks exec`, stdio.

`nox -s bench -- --against ROOT` runs it (root); ROOT is a checkout that `./dev` has prepared, `--image` its guest's
image. What counts is the ratio of medians, now to before: absolute times of these machines say little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench import start, stdio
from support import stream_guest
from support.containerd import IMAGE, Containerd, make_image, running
from support.vsock_guest import python_root

__all__ = ["main"]

_TIMEOUT = 240
_MIB = 48


class House(NamedTuple):
    """A checkout: its programs, and the environment that leads them to its guest."""

    name: str
    programs: Path
    environment: dict[str, str]

    @property
    def run(self) -> list[str]:
        """To `kata-runtime run`."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ["env", *variables, str(self.programs / "kata-runtime"), "run"]

    def write_shim(self, directory: Path) -> None:
        exports = "".join(f"export {name}='{value}'\n" for name, value in self.environment.items())
        path = directory / f"containerd-shim-{self.name}-v2"
        path.write_text(f'#!/bin/sh\n{exports}exec {self.programs}/containerd-shim-kata-v2 "$@"\n')
        path.chmod(0o755)


Measure = Callable[[House], float]


def main() -> int:
    """Print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--image", type=Path, help="the other guest's image; by default the one of all checkouts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("artifacts/bench-against.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kata-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        houses = [
            _house(scratch, "before", options.root.resolve() / ".venv/bin", options.image),
            _house(scratch, "now", Path(sys.executable).parent, None),
        ]
        samples = _starts(houses, options.rounds)
        samples |= _containers(scratch, houses, options.rounds)
        samples |= _stdio(scratch, stack, houses, options.rounds)
    print(f"{'':24} {'before':>9} {'now':>9}  now to before")
    for what, taken in samples.items():
        before, now = (statistics.median(taken[house.name]) for house in houses)
        print(f"{what:24} {before:8.3f}s {now:8.3f}s  {now / before:.2f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(samples, indent=1))
    return 0


def _house(scratch: Path, name: str, programs: Path, image: Path | None) -> House:
    environment = {"KATA_IMAGE_DIR": str(image.resolve())} if image else {}
    for side, on in (("plain", "false"), ("traced", "true")):
        (scratch / f"{name}-{side}.toml").write_text(
            f'[runtime]\ntrace_dir = "{scratch}/{name}"\nenable_tracing = {on}\n[agent.kata]\nenable_tracing = {on}\n'
        )
    return House(name, programs, environment | {"KATA_CONF_FILE": str(scratch / f"{name}-plain.toml")})


def _turns(houses: list[House], rounds: int, measures: dict[str, Measure]) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {what: {house.name: [] for house in houses} for what in measures}
    for number in range(rounds + 1):
        for what, measure in measures.items():
            # The first round warms the page cache; the first of a round is now the one, now the other.
            for house in houses if number % 2 else reversed(houses):
                taken = measure(house)
                samples[what][house.name] += [taken] if number else []
        print(f"{', '.join(measures)}: round {number} of {rounds}", file=sys.stderr)
    return samples


def _starts(houses: list[House], rounds: int) -> dict[str, dict[str, list[float]]]:
    def whole(house: House) -> float:
        begin = time.monotonic()
        subprocess.run([*house.run, "--", "true"], check=True, stderr=subprocess.DEVNULL)
        return time.monotonic() - begin

    return _turns(
        houses,
        rounds,
        {
            "first output": lambda house: start.first_output(house.run),
            "first output, traced": lambda house: start.first_output([*house.run, "--trace"]),
            "run … true": whole,
        },
    )


def _containers(scratch: Path, houses: list[House], rounds: int) -> dict[str, dict[str, list[float]]]:
    shims = scratch / "shims"
    shims.mkdir()
    for house in houses:
        house.write_shim(shims)
    number = 0

    def run(house: House) -> float:
        nonlocal number
        number += 1
        return _ctr(containerd, "run", "--rm", "--runtime", _runtime(house), IMAGE, f"r{number}", "true")

    def execute(house: House) -> float:
        nonlocal number
        number += 1
        return _ctr(containerd, "tasks", "exec", "--exec-id", f"e{number}", house.name, "true")

    with running(shims, make_image(scratch)) as containerd, ExitStack() as stack:
        found = _turns(houses, rounds, {"ctr run --rm … true": run})
        for house in houses:
            _ctr(containerd, "run", "--detach", "--runtime", _runtime(house), IMAGE, house.name, "sleep", "1000")
            stack.callback(containerd.ctr, "tasks", "delete", "--force", house.name, timeout=_TIMEOUT, check=False)
        return found | _turns(houses, 2 * rounds, {"ctr tasks exec … true": execute})


def _runtime(house: House) -> str:
    return f"io.containerd.{house.name}.v2"


def _ctr(containerd: Containerd, *arguments: str) -> float:
    return containerd.timed(*arguments, timeout=_TIMEOUT)


def _stdio(scratch: Path, stack: ExitStack, houses: list[House], rounds: int) -> dict[str, dict[str, list[float]]]:
    root = python_root(scratch)
    (root / "stream_guest.py").write_text(Path(stream_guest.__file__).read_text())
    ways = {house.name: stack.enter_context(stdio.under_run(root, house.run, f"-{house.name}")) for house in houses}
    measures: dict[str, Measure] = {
        f"{verb}, {_MIB} MiB": lambda house, verb=verb: stdio.transfer(ways[house.name], verb, _MIB << 20)  # type: ignore[misc]
        for verb in ("source", "stdout", "sink", "stdin")
    }
    return _turns(houses, rounds, measures)


if __name__ == "__main__":
    os.environ.pop("KATA_TEST_TEMPLATE", None)
    sys.exit(main())
