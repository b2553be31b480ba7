"""The import rule of docs/architecture.md, and what else holds for every module."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kata_runtime.image.builder import AGENT_PACKAGES

pytestmark = pytest.mark.slow  # every module is parsed

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "kata_runtime": "runtime",
    "kata_agent": "agent",
    "kata_telemetry": "telemetry",
    "kata_traces": "telemetry",
    "kata_common": "common",
}
# Rooms in the order a request travels: a room imports those of later rows, and those that are in no row.
ROWS = {
    "kata_runtime": [{"member"}, {"cli"}, {"monitor"}, {"engine"}, {"shim"}, {"sandbox"}, {"hypervisor", "guest"}],
    "kata_agent": [{"main"}, {"server"}, {"services"}, {"container"}, {"process"}, {"guest"}],
    "kata_traces": [{"commands"}, {"views", "forwarder"}, {"read"}, {"send"}, {"store"}, {"sdk"}],
}
FOREIGN = {
    "kata_runtime": {"kata_agent"},
    "kata_agent": {"kata_runtime", "kata_traces"},
    "kata_traces": {"kata_runtime", "kata_agent", "kata_protos"},
    "kata_telemetry": {"kata_runtime", "kata_agent", "kata_protos", "kata_traces"},
    "kata_common": {"kata_runtime", "kata_agent", "kata_protos", "kata_traces", "kata_telemetry"},
}
# Third-party packages that have one home.
HOMES = {
    "opentelemetry": ("kata_telemetry.", "kata_traces."),
    "pydantic": ("kata_runtime.config.",),
    "pydantic_core": ("kata_runtime.config.",),
}
# The doors to child processes: the agent's is its reaper, since PID 1 must know all of its children, the shim's
# forks the daemon without loading what the other doors need, a stand-in is this process once more, an engine's
# command starts the shim as containerd does, and the pager is the user's own program.
DOORS = {
    "kata_agent.process.reaper",
    "kata_runtime.engine.standin",
    "kata_runtime.engine.tasks",
    "kata_runtime.image.tools",
    "kata_runtime.process",
    "kata_runtime.shim.start",
    "kata_traces.commands.pager",
    "kata_traces.send.delivery",
}
# The room that may import OpenTelemetry at import, and its modules that don't.
SDK = "kata_traces.sdk."
LIGHT = {"kata_traces.sdk.environment", "kata_traces.sdk.propagators"}
SPAWNING = {"create_subprocess_exec", "create_subprocess_shell", "fork", "forkpty", "popen", "system"}


@dataclass(frozen=True)
class Import:
    """A module that is named in an import statement; `runs` is False under TYPE_CHECKING."""

    name: str
    line: int
    runs: bool
    at_import: bool


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for name, folder in PACKAGES.items():
        for path in sorted((ROOT / folder / name).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[module] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.AST, runs: bool = True, at_import: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, runs, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # `from package import room` names a room, too.
            yield from (Import(f"{node.module}.{alias.name}", node.lineno, runs, at_import) for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from imports(node, False, at_import)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, runs, at_import and not inside)


def package(module: str) -> str:
    return module.partition(".")[0]


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def row(module: str) -> int | None:
    rows = ROWS.get(package(module), [])
    return next((index for index, rooms in enumerate(rows) if room(module) in rooms), None)


def violations(check: str) -> list[str]:
    found = []
    for module, tree in modules().items():
        for used in imports(tree):
            if problem := globals()[check](module, used):
                found.append(f"{module}:{used.line}: {problem}")
    return found


def wrong_package(module: str, used: Import) -> str:
    return f"imports {used.name}" if package(used.name) in FOREIGN[package(module)] else ""


def wrong_order(module: str, used: Import) -> str:
    if package(module) != package(used.name) or room(module) == room(used.name):
        return ""
    mine, other = row(module), row(used.name)
    if other is None:
        return ""
    # What is in no row may be used by all, so it uses nothing that is in one.
    return f"imports {used.name}" if mine is None or other <= mine else ""


def wrong_home(module: str, used: Import) -> str:
    home = HOMES.get(package(used.name))
    return f"imports {used.name}" if home and not f"{module}.".startswith(home) else ""


def wrong_door(module: str, used: Import) -> str:
    return f"imports {used.name}" if package(used.name) in ("subprocess", "pty") and module not in DOORS else ""


def wrong_hypervisor(module: str, used: Import) -> str:
    """What knows one hypervisor is in its folder, and made by the factory; the sandbox knows the seam."""
    at_home = module.startswith("kata_runtime.hypervisor.qemu") or module == "kata_runtime.hypervisor.factory"
    foreign = f"{used.name}.".startswith("kata_runtime.hypervisor.qemu.") or package(used.name) == "qemu"
    return f"imports {used.name}" if foreign and not at_home else ""


def too_early(module: str, used: Import) -> str:
    """kata_traces.sdk is OpenTelemetry's, and so imported by others as late as that."""
    if module.startswith(SDK) and module not in LIGHT:
        return ""
    heavy = used.name.startswith(("opentelemetry.", SDK)) and not used.name.startswith(tuple(LIGHT))
    heavy = heavy and used.at_import and used.runs
    return f"imports {used.name} when tracing may be off" if heavy else ""


@pytest.mark.parametrize(
    "check", ["wrong_package", "wrong_order", "wrong_home", "wrong_door", "wrong_hypervisor", "too_early"]
)
def test_imports(check: str) -> None:
    assert violations(check) == []


def test_there_is_something_to_check() -> None:
    assert len(modules()) > 20
    assert ROWS["kata_runtime"][1] <= {room(name) for name in modules()}


def test_children_come_through_the_doors() -> None:
    found = [
        f"{module}:{node.lineno}: {node.attr}"
        for module, tree in modules().items()
        if module not in DOORS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr in SPAWNING or node.attr.startswith(("exec", "posix_spawn", "spawn")))
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "asyncio")
    ]
    assert found == []


def test_nobody_but_its_folder_names_a_hypervisor() -> None:
    """Its configuration is `Config.hypervisor` for all others."""
    homes = ("kata_runtime.hypervisor.qemu", "kata_runtime.hypervisor.factory", "kata_runtime.config.")
    named = {"QemuConfig", "qemu"}
    found = [
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        if package(module) == "kata_runtime" and not f"{module}.".startswith(homes)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in named) or (isinstance(node, ast.Name) and node.id in named)
    ]
    assert found == []


# What may stand at the top of a module: nothing of it acts.
QUIET = (
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.If,
    ast.Assert,
)


def test_nothing_acts_at_import() -> None:
    """Entry points act when they are called, or under `if __name__ == "__main__"`."""
    found = [
        f"{module}:{node.lineno}: {type(node).__name__}"
        for module, tree in modules().items()
        if not module.endswith(("__main__", ".main"))
        for node in tree.body
        if not isinstance(node, QUIET) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert found == []


def used_by(*packages: str) -> set[str]:
    """Packages that the modules of these import."""
    return {
        package(used.name) for name, tree in modules().items() if package(name) in packages for used in imports(tree)
    }


def test_what_is_in_the_guests_image() -> None:
    """Every package of ours that the agent needs, and nothing of the host's."""
    ours = {*PACKAGES, "kata_protos"}
    assert (used_by("kata_agent") & ours) | {"kata_agent"} == set(AGENT_PACKAGES)
    assert used_by(*AGENT_PACKAGES) & ours <= set(AGENT_PACKAGES)
    assert not {"kata_traces", "kata_runtime"} & set(AGENT_PACKAGES)


def test_common_needs_the_standard_library_alone() -> None:
    assert used_by("kata_common") <= sys.stdlib_module_names | {"kata_common"}


def test_rows_name_rooms_that_exist() -> None:
    for name, rows in ROWS.items():
        there = {room(module) for module in modules() if package(module) == name}
        assert set().union(*rows) <= there
