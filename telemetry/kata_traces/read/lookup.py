"""Which trace a person means: a sandbox's in the store, or a file's."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kata_common.files import exists, is_directory
from kata_traces.read.trace import Trace, load, load_store
from kata_traces.store.abandoned import close_abandoned
from kata_traces.store.errors import StoreError
from kata_traces.store.store import DEFAULT_TRACE_DIR, Meta, Store, stores

__all__ = ["LATEST", "WHICH", "Source", "find", "load_any", "load_kept", "source", "trace_dir"]

LATEST: Final = "latest"
WHICH: Final = (
    "sandbox id, unique beginning of one, name, or a file (OTLP/JSON, Jaeger's or Perfetto's JSON) or directory "
    "with a trace; default: the latest sandbox"
)
# What is read of a file into memory.
MAX_FILE: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a trace comes from: a store, or else a file."""

    store: Store | None
    path: Path | None = None

    @property
    def label(self) -> str:
        """As a person would name it."""
        return self.store.directory.name if self.store else str(self.path)

    def lines(self) -> Iterator[bytes | str]:
        """Its lines of OTLP/JSON, the last of which may be cut off. Raises StoreError."""
        if self.store is not None:
            yield from self.store.lines()
            return
        from kata_traces.read.foreign import UnknownFormatError, otlp_lines

        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except OSError as error:
            raise StoreError(f"cannot read the trace {self.path}: {error.strerror}") from error
        if len(content) > MAX_FILE:
            raise StoreError(f"{self.path} is larger than {MAX_FILE >> 20} MiB")
        try:
            yield from otlp_lines(content)
        except UnknownFormatError as error:
            raise StoreError(f"{self.path} has no span: {error}") from error

    def load(self) -> Trace:
        """The trace. Raises StoreError where it has no span yet or can't be read."""
        if self.store is not None:
            return load_kept(self.store)
        trace = load(self.lines(), meta=Meta(""))
        if trace is None:
            raise StoreError(
                f"{self.path} has no span: a file with a trace has lines of OTLP/JSON, as `trace show --format otlp` "
                "writes them, or is Jaeger's or Perfetto's"
            )
        return trace


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


def source(trace_dir: Path, wanted: str) -> Source:
    """The trace of a sandbox (see `find`), of a store's directory elsewhere, or of a file.

    What names a file is one: sandbox ids have no slash, and an id that is in the store goes before a file of that name.
    Raises StoreError.
    """
    path = Path(wanted)
    is_path = "/" in wanted or (wanted != LATEST and exists(path) and not is_directory(trace_dir / wanted))
    if not is_path:
        return Source(find(trace_dir, wanted))
    if is_directory(path):
        if not (path / "spans.jsonl").exists() and not (path / "meta.json").exists():
            raise StoreError(f"{path} is a directory without a trace: it has neither spans.jsonl nor meta.json")
        return Source(Store(path))
    return Source(None, path)


def load_any(trace_dir: Path, wanted: str) -> Trace:
    """The trace that `source` means. Raises StoreError."""
    return source(trace_dir, wanted).load()
