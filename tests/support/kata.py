"""Runs the installed `kata-runtime` as a user would, with directories of the test's own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["TEMPLATES", "Kata", "Span", "build_image", "drop_in", "made_template", "read_spans"]

# Of this session alone: another one removes its own at its end.
TEMPLATES = Path(f"/dev/shm/kata-test-templates-{os.getpid()}")
# Decision 0037: clones are not the default yet.
TEMPLATES_WANTED = bool(os.environ.get("KATA_TEST_TEMPLATE"))
# An emulated guest on a busy machine; a run takes some five seconds.
TIMEOUT = 120
_MAIN = "\nfrom kata_runtime.cli.main import main\nimport sys\nsys.exit(main())"


def build_image() -> None:
    """Bring the guest's image up to date with this checkout's agent; KATA_IMAGE_DIR names another place for it."""
    output = ["--output", os.environ["KATA_IMAGE_DIR"]] if os.environ.get("KATA_IMAGE_DIR") else []
    subprocess.run([str(Kata.program), "image", "build", *output], check=True, stdin=subprocess.DEVNULL)


def drop_in(directory: Path, *, template: bool) -> None:
    """Let sandboxes that are configured by `directory`/configuration.toml be clones of the tests' template, or boot."""
    (directory / "config.d").mkdir(parents=True, exist_ok=True)
    wanted = json.dumps(template)
    text = f'[factory]\nenable_template = {wanted}\ntemplate_path = "{TEMPLATES}"\ntemplate_on_demand = false\n'
    (directory / "config.d/factory.toml").write_text(text)


@contextmanager
def made_template(scratch: Path) -> Iterator[None]:
    """A template for sandboxes of the default configuration, for the block; none where the host has no room for one."""
    kata = Kata(scratch)
    drop_in(scratch, template=True)
    made = kata("factory", "init")
    if b"there is no room for a template" in made.stderr:
        print(made.stderr.decode(errors="replace"), "so the tests' sandboxes boot", file=sys.stderr)
    else:
        assert made.returncode == 0, made.stderr.decode(errors="replace")
    try:
        yield
    finally:
        kata("factory", "destroy")


@dataclass(frozen=True)
class Span:
    """One span of a store, times in ns."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    failed: bool


@dataclass
class Kata:
    """A `kata-runtime` with a configuration file of its own. `settings` are `[table]` -> key -> value."""

    directory: Path
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    # Python code that runs in its process before anything of it is imported.
    prologue: str = ""

    program = Path(sys.executable).with_name("kata-runtime")

    @property
    def trace_dir(self) -> Path:
        return self.directory / "traces"

    @property
    def logs_dir(self) -> Path:
        return self.directory / "logs"

    def configure(self, table: str, **keys: object) -> "Kata":
        """Set keys of a table of configuration.toml."""
        self.settings.setdefault(table, {}).update(keys)
        return self

    def tracing(self, *, runtime: bool, agent: bool) -> "Kata":
        """Set the two keys."""
        return self.configure("runtime", enable_tracing=runtime).configure("agent.kata", enable_tracing=agent)

    def command(self, *arguments: str) -> list[str]:
        """The argv of `kata-runtime ARGUMENTS`."""
        config = self.directory / "configuration.toml"
        if not (self.directory / "config.d").exists():
            drop_in(self.directory, template=TEMPLATES_WANTED)
        tables = {"runtime": {"trace_dir": str(self.trace_dir)}} | self.settings
        tables["runtime"].setdefault("trace_dir", str(self.trace_dir))
        text = (
            f"[{table}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
            for table, keys in tables.items()
        )
        config.write_text("\n".join(text))
        program = [sys.executable, "-P", "-c", self.prologue + _MAIN] if self.prologue else [str(self.program)]
        return [*program, "--config", str(config), *arguments]

    def env(self) -> dict[str, str]:
        """The environment of the command; logs of its sandboxes are kept."""
        return {**os.environ, "KATA_LOGS_DIR": str(self.logs_dir), **self.environment}

    def __call__(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = TIMEOUT
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run it to its end."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            self.command(*arguments), capture_output=True, timeout=timeout, check=False, env=self.env(), **given
        )

    def run(
        self, *argv: str, options: Sequence[str] = (), stdin: bytes | None = None, timeout: float = TIMEOUT
    ) -> "subprocess.CompletedProcess[bytes]":
        """`kata-runtime run OPTIONS -- ARGV`."""
        return self("run", *options, "--", *argv, stdin=stdin, timeout=timeout)

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start it; the test ends it."""
        return subprocess.Popen(self.command(*arguments), env=self.env(), **options)

    def spans(self, sandbox: str = "") -> list[Span]:
        """The spans of a sandbox's store, by default of the only one."""
        stores = [self.trace_dir / sandbox] if sandbox else sorted(self.trace_dir.iterdir())
        assert len(stores) == 1, stores
        return read_spans(stores[0] / "spans.jsonl")


def read_spans(path: Path) -> list[Span]:
    """The spans of a file of OTLP/JSON lines."""
    found = []
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            service = _attributes(resource["resource"])["service.name"]
            for scope in resource["scopeSpans"]:
                found += [_span(service, raw) for raw in scope["spans"]]
    return found


def _span(service: str, raw: Mapping[str, Any]) -> Span:
    return Span(
        service=service,
        name=raw["name"],
        trace_id=raw["traceId"],
        span_id=raw["spanId"],
        parent_id=raw.get("parentSpanId", ""),
        start=int(raw["startTimeUnixNano"]),
        end=int(raw["endTimeUnixNano"]),
        attributes=_attributes(raw),
        failed=raw.get("status", {}).get("code") == 2,
    )


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in holder.get("attributes", ())}
