"""Finding and reading configuration files, and remembering the result.

Importing pydantic and building its validators costs about 100 ms, reading the result from JSON less than one. So a
validated configuration is kept as JSON, keyed by what `stat` says of the files it came from.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from kata_common.documents import parse_json
from kata_common.files import write_atomically
from kata_runtime.config import model
from kata_runtime.config.model import Config
from kata_runtime.errors import ConfigError

__all__ = ["DEFAULT_PATHS", "config_from_json", "load"]

# Kata's search order (docs/how-to and src/runtime/pkg/katautils/config-settings.go.in).
DEFAULT_PATHS = (
    Path("/etc/kata-containers/configuration.toml"),
    Path("/usr/share/defaults/kata-containers/configuration.toml"),
)
ENVIRONMENT = "KATA_CONF_FILE"
# Seconds; it takes a tenth of one.
_APART_TIMEOUT = 10


def load(
    explicit: Path | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    default_paths: tuple[Path, ...] = DEFAULT_PATHS,
    cache: Path | None = None,
    apart: bool = False,
) -> Config:
    """The configuration of this machine.

    The first of these is the main file: `explicit` (`--config`), `$KATA_CONF_FILE`, whichever of `default_paths`
    exists; else the built-in defaults hold. Then the `config.d/*.toml` beside it follow in the order of their names
    (beside the first default path where there is no main file), and change single keys.

    `cache` is a directory for validated results, by default one under /run (root) or `$XDG_RUNTIME_DIR`; where it can't
    be used safely nothing is cached. With `apart` a process of its own validates what is not cached: for callers that
    live long, because pydantic would stay in their memory (12 MiB).

    Raises:
        ConfigError: a file that was asked for is missing, or one can't be read, parsed, or validated.
    """
    main = _main_file(explicit, environ, default_paths)
    drop_ins = (main or default_paths[0]).parent / "config.d"
    sources = [_Source.of(path) for path in ([main] if main else []) + _toml_files(drop_ins)]
    if not sources:
        return Config.default()
    store = _Cache.open(cache or _cache_directory(environ))
    remembered = store.get(sources) if store else None
    if remembered is None and store and apart and main:
        _load_apart(main, store)
        remembered = store.get(sources)
    if remembered is not None:
        return remembered
    from kata_runtime.config.validate import validate

    config = validate([(str(source.path), source.parse()) for source in sources])
    if store:
        store.put(sources, config)
    return config


def _load_apart(main: Path, store: "_Cache") -> None:
    """Have another process fill the cache. Where it can't, the caller finds out why by doing it itself."""
    from kata_runtime.process import run_python

    program = "from pathlib import Path; from kata_runtime.config.load import load; "
    program += "load(Path(sys.argv[1]), cache=Path(sys.argv[2]))"
    run_python(program, str(main), str(store.directory), timeout=_APART_TIMEOUT)


def _main_file(explicit: Path | None, environ: Mapping[str, str], default_paths: tuple[Path, ...]) -> Path | None:
    if explicit is not None:
        return explicit
    if environ.get(ENVIRONMENT):
        return Path(environ[ENVIRONMENT])
    return next((path for path in default_paths if path.exists()), None)


def _toml_files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: can't be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Source:
    """A configuration file, and what tells one version of it from another."""

    path: Path
    mtime_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "_Source":
        try:
            status = path.stat()
        except OSError as error:
            hint = f"check --config and ${ENVIRONMENT}" if isinstance(error, FileNotFoundError) else ""
            raise ConfigError(f"{path}: can't be read: {error.strerror}", hint=hint) from error
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        return cls(path.absolute(), status.st_mtime_ns, status.st_size, status.st_ino)

    def parse(self) -> dict[str, Any]:
        import tomli

        try:
            return tomli.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{self.path}: can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.path}: is not UTF-8 (byte {error.start})", hint="TOML is UTF-8 text") from error
        except tomli.TOMLDecodeError as error:
            where = f"{self.path}:{error.lineno}:{error.colno}"
            raise ConfigError(
                f"{where}: is not TOML: {error.msg}", hint="https://toml.io says how it is written"
            ) from error


def _cache_directory(environ: Mapping[str, str]) -> Path | None:
    if os.geteuid() == 0:
        return Path("/run/kata-containers/config")
    runtime_directory = environ.get("XDG_RUNTIME_DIR")
    return Path(runtime_directory) / "kata-containers/config" if runtime_directory else None


class _Cache:
    """Validated configurations in a directory that nobody else may write to. Every failure means: not cached."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls, directory: Path | None) -> "_Cache | None":
        if directory is None:
            return None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.lstat()
        except OSError:
            return None
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
        return cls(directory) if ours else None

    def get(self, sources: list[_Source]) -> Config | None:
        key = self._key(sources)
        try:
            kept = parse_json(self._path(sources).read_bytes())
            if kept["key"] == key:
                return config_from_json(kept["config"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def put(self, sources: list[_Source], config: Config) -> None:
        content = json.dumps({"key": self._key(sources), "config": asdict(config)})
        with suppress(OSError):
            # For nobody else to read: otlp_headers may hold credentials.
            write_atomically(self._path(sources), content.encode())

    def _path(self, sources: list[_Source]) -> Path:
        names = "\0".join(str(source.path) for source in sources)
        return self.directory / f"{hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()[:16]}.json"

    @staticmethod
    def _key(sources: list[_Source]) -> list[list[str | int]]:
        # The schema counts as one more source: its file is another one after an upgrade.
        schema = _Source.of(Path(model.__file__))
        return [[str(source.path), source.mtime_ns, source.size, source.inode] for source in (schema, *sources)]


def _restored(default: Any, kept: Any) -> Any:  # noqa: ANN401 - as json has it, and as the fields have it
    """What `asdict` and JSON have made of a value that looks like `default`. Raises KeyError, TypeError."""
    if is_dataclass(default) and not isinstance(default, type):
        values = {name.name: _restored(getattr(default, name.name), kept[name.name]) for name in fields(default)}
        return type(default)(**values)
    return tuple(kept) if isinstance(default, tuple) else kept


def config_from_json(kept: object) -> Config:
    """What `dataclasses.asdict` made of a configuration, after its way through JSON. Raises KeyError, TypeError."""
    return cast("Config", _restored(Config.default(), kept))
