"""Writes the reference, out of the code: `nox -s reference` (into artifacts/reference); the Debian package has it, too.

It is in no repository, so it can't be out of date.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from kata_common.contract import RPCS
from kata_protos import agent_pb2
from kata_runtime.cli.install import documented
from kata_runtime.cli.main import whole_parser
from kata_runtime.config.annotations import APPLIED
from kata_runtime.install.commands import Option
from kata_runtime.metrics.families import SandboxCollector
from kata_runtime.monitor.scrape import Scraper
from kata_telemetry.conventions import SCHEMA

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Write all pages, and print where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts/reference", metavar="DIR")
    directory = parser.parse_args().output
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / f"{name}.md").write_text("\n".join(page()) + "\n")
    print(directory)
    return 0


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """As Markdown has it."""
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


# --- pages ----------------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Every command with its options, as --help has them."""
    yield "# Commands\n"
    for program in documented(whole_parser()):
        for command in program.all():
            yield f"{'#' * min(len(command.words) + 1, 4)} {' '.join(command.words)}\n"
            yield f"{command.help[:1].upper()}{command.help[1:]}\n\n    {command.usage}\n"
            options = [*command.places, *command.options]
            if options:
                yield from table(("option", "says"), ((f"`{_heading(option)}`", option.help) for option in options))


def _heading(option: Option) -> str:
    return f"{', '.join(option.names)} {option.value}".strip()


def configuration() -> Iterator[str]:
    """Every key with its default."""
    yield "# Configuration\n"
    lines = (ROOT / "configuration.toml").read_text().splitlines()
    rows: list[tuple[str, str, str]] = []
    said: list[str] = []
    for line in [*lines, "[end]"]:
        key, equals, value = line.partition(" = ")
        if line.startswith("["):
            if rows:
                yield from table(("key", "default", "says"), rows)
            rows = []
            if line != "[end]":
                yield f"## {line}\n"
            said = []
        elif line.startswith("#"):
            said.append(line.lstrip("# "))
        elif equals:
            rows.append((f"`{key}`", f"`{value}`", " ".join(said)))
            said = []


def annotations() -> Iterator[str]:
    """What a pod may change of it."""
    yield "# Annotations\n\nWhere `enable_annotations` allows them:\n"
    yield from table(("annotation",), ((f"`io.katacontainers.config.{name}`",) for name in sorted(APPLIED)))


def spans() -> Iterator[str]:
    """Names of spans and attributes."""
    sys.path.append(str(ROOT / "tests"))
    from support.span_names import span_names

    yield "# Spans\n\n`*` is known only when it happens; where a name comes from elsewhere, all that it may be.\n"
    yield from (f"- `{name}`" for name in sorted(span_names()) if re.fullmatch(r"[A-Za-z][\w.*]{2,40}", name))
    yield "\n## Attributes\n"
    yield from table(("attribute", "on", "says"), ((f"`{name}`", on, says) for name, (on, says) in SCHEMA.items()))


def metrics() -> Iterator[str]:
    """Families that a sandbox and kata-monitor serve."""
    yield "# Metrics\n"
    found = [*SandboxCollector(os.getpid()).collect(), *Scraper(ROOT).collect()]
    labels = [
        sorted({label for sample in family.samples for label in sample.labels if label != "le"}) for family in found
    ]
    yield from table(
        ("family", "type", "labels", "says"),
        (
            (f"`{family.name}`", family.type, ", ".join(names), family.documentation)
            for family, names in zip(found, labels, strict=True)
        ),
    )


def calls() -> Iterator[str]:
    """The agent's API."""
    yield "# Calls of the agent\n"
    for service in agent_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            level = RPCS[method.name].level if method.name in RPCS else None
            traced = f"traced: {level.name.lower()}" if level is not None else "leaves no span"
            yield f"## {service.name}.{method.name}\n\n{traced}\n"
            for message in (method.input_type, method.output_type):
                rows = [(f"`{field.name}`", str(field.number), _kind(field)) for field in message.fields]
                yield f"`{message.name}`{'' if rows else ' has no field'}\n"
                if rows:
                    yield from table(("field", "number", "type"), rows)


def _kind(field: FieldDescriptor) -> str:
    kinds = {
        value: name.removeprefix("TYPE_").lower()
        for name, value in vars(FieldDescriptor).items()
        if name[:5] == "TYPE_"
    }
    kind = (
        field.message_type.name
        if field.message_type
        else field.enum_type.name
        if field.enum_type
        else kinds[field.type]
    )
    return f"repeated {kind}" if field.is_repeated else kind


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    page.__name__: page for page in (commands, configuration, annotations, spans, metrics, calls)
}

if __name__ == "__main__":
    sys.exit(main())
