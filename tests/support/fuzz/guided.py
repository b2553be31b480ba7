"""A target under atheris: inputs are kept and changed by what code they reach. `session` starts it, a process each.

What libFuzzer makes is bytes; most inputs get the edits of `odd` instead, so that a document stays one. A broken
promise does not end it: the input goes to a file, once for each place. Only what hangs or grows ends it.
"""

import importlib
import logging
import sys
import traceback
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.fuzz.target import Target

# Only what is ours is worth following.
PACKAGES = ("kata_runtime", "kata_agent", "kata_telemetry", "kata_traces", "kata_common")


def place_of(error: BaseException) -> str:
    """Where it comes from: the innermost place of ours, and the kind of error."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in PACKAGES)]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "a promise"
    return f"{type(cause).__name__} at {where}"


def main() -> None:
    """Run until libFuzzer ends the process: MODULE TARGET FINDINGS CORPUS and what libFuzzer is told."""
    module, name, findings, corpus, *arguments = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES), enable_loader_override=False):
        # Not the whole table: what is imported is instrumented, which takes its time.
        room = importlib.import_module(module)
    from support.fuzz.corpus import kept
    from support.fuzz.odd import apply, rolled

    target: Target = next(target for target in room.TARGETS if target.name == name)
    for number, data in enumerate((*target.seeds, *kept(target.name))):
        (Path(corpus) / f"seed-{number:03}").write_bytes(data)
    found: set[str] = set()

    def one(data: bytes) -> None:
        try:
            target.check(data)
        except AssertionError as error:
            place = place_of(error)
            if place not in found:
                found.add(place)
                (Path(findings) / f"{target.name}-{len(found)}").write_bytes(data)
                print(f"FOUND {place}: {error}", file=sys.stderr, flush=True)

    def change(data: bytes, size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.randrange(3) == 0:
            return bytes(atheris.Mutate(data, size))
        return apply(target, data, rolled(random))[:size]

    atheris.Setup([sys.argv[0], *arguments, corpus], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
