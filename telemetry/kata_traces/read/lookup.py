"""Which trace a person means: a sandbox's in the store, or a file's."""

import argparse
from pathlib import Path
from typing import Final

from kata_traces.read.trace import Trace, load, load_store
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.store import DEFAULT_TRACE_DIR, Store, stores

__all__ = ["LATEST", "find", "load_any", "load_kept", "trace_dir"]

LATEST: Final = "latest"


def trace_dir(options: argparse.Namespace) -> Path:
    """Where this command looks for traces; the command line may have set what the configuration says."""
    return Path(options.trace_dir or DEFAULT_TRACE_DIR)


def find(trace_dir: Path, wanted: str) -> Store:
    """The trace of a sandbox by id, unique beginning of an id, name, or "latest". Raises StoreError."""
    kept = stores(trace_dir)
    if wanted == LATEST and kept:
        return kept[0]
    ids = [store for store in kept if store.directory.name == wanted]
    begins = [store for store in kept if store.directory.name.startswith(wanted)]
    # The newest of a name: that is what a person means who runs the same thing again.
    named = [store for store in kept if wanted and store.meta().name == wanted][:1]
    for found in (ids, begins, named):
        if len(found) == 1 and wanted:
            return found[0]
    if len(begins) > 1 and wanted and not named:
        some = ", ".join(store.directory.name for store in begins[:5]) + (", …" if len(begins) > 5 else "")
        raise StoreError(f"{wanted!r} is the beginning of {len(begins)} sandboxes with a trace: {some}")
    what = "no trace" if wanted == LATEST else f"no trace of {wanted!r}"
    raise StoreError(
        f"{what}; traces are kept in {trace_dir} ({len(kept)} there): "
        "is enable_tracing on in the configuration, or was the sandbox run with --trace?"
    )


def load_kept(store: Store) -> Trace:
    """The trace in `store`. Raises StoreError where it has no span yet or can't be read."""
    close_abandoned(store)
    trace = load_store(store)
    if trace is None:
        raise StoreError(f"the trace in {store.directory} has no span yet")
    return trace


def load_any(trace_dir: Path, wanted: str) -> Trace:
    """The trace of a sandbox (see `find`), of a store's directory elsewhere, or of a file with lines of OTLP/JSON.

    What names a file is one: sandbox ids have no slash, and an id that is in the store goes before a file of that name.
    Raises StoreError.
    """
    path = Path(wanted)
    is_path = "/" in wanted or (wanted != LATEST and path.exists() and not (trace_dir / wanted).is_dir())
    if not is_path:
        return load_kept(find(trace_dir, wanted))
    if path.is_dir():
        if not (path / "spans.jsonl").exists() and not (path / "meta.json").exists():
            raise StoreError(f"{path} is a directory without a trace: it has neither spans.jsonl nor meta.json")
        return load_kept(Store(path))
    return _load_file(path)


def _load_file(path: Path) -> Trace:
    try:
        with path.open("rb") as file:
            trace = load(file)
    except OSError as error:
        raise StoreError(f"cannot read the trace {path}: {error.strerror}") from error
    if trace is None:
        raise StoreError(
            f"{path} has no span: a file with a trace has lines of OTLP/JSON, as `trace show --format otlp` writes them"
        )
    return trace
