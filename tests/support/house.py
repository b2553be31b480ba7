"""Figures of the library code, for `nox -s house` and the test that holds their bounds.

    python tests/support/house.py [ROOT]

ROOT is a checkout; without one it is this. Generated stubs don't count.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

__all__ = ["MAX_ATTRIBUTES", "MAX_FILE", "MAX_FUNCTION", "House"]

MAX_FILE, MAX_FUNCTION, MAX_ATTRIBUTES = 500, 60, 12
FOLDERS = ("runtime", "agent", "telemetry", "common")
# docs/architecture.md, "Ports of the guest".
VSOCK_PORTS = frozenset({1024, 1026, 1027, 1028, 1029, 10240})
# One call, key, span and what knows QEMU, to count the files that name them.
RECIPES = {
    "RPC": r"\bUpdateInterface\b|\bupdate_interface\b",
    "configuration key": r"\bhealth_check_request_timeout_ms\b",
    "span": r'"setupTCFiltering"',
    "hypervisor": r"\bQemuConfig\b|\bVmSpec\b|\bhypervisor\.qemu\.\w|\bkata_runtime.*\bqmp\b|^\[hypervisor\.qemu\]",
}


@dataclass(frozen=True)
class Module:
    """A source file; `name` is that of its module."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        return self.text.count("\n")


@dataclass
class House:
    """What is in a checkout's packages."""

    root: Path
    modules: dict[str, Module] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "House":
        house = cls(root)
        for folder in FOLDERS:
            for path in sorted((root / folder).rglob("*.py")):
                parts = path.relative_to(root / folder).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                house.modules[name] = Module(name, path.relative_to(root), path.read_text())
        return house

    def files(self) -> dict[str, int]:
        """Lines of each file."""
        return {str(module.path): module.lines for module in self.modules.values()}

    def functions(self) -> dict[str, int]:
        """Lines of each function."""
        return {
            f"{module.name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
            for module in self.modules.values()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }

    def attributes(self) -> dict[str, int]:
        """How many names of each class's `self` are bound by its methods. Fields of a value that is made whole are no
        state.
        """
        found = {}
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    found[f"{module.name}.{node.name}"] = len(set(_bound(node)))
        return found

    def names(self) -> int:
        """Names that modules bind, besides those of functions, classes and imports."""
        return sum(
            1
            for module in self.modules.values()
            for node in module.tree.body
            for target in _targets(node)
            for name in ast.walk(target)
            if isinstance(name, ast.Name) and not name.id.startswith("__")
        )

    def circles(self) -> list[list[str]]:
        """Modules that import each other, wherever the import stands, but for those of types alone."""
        graph = {
            name: {found for used in _imports(module.tree) if (found := self._module(used)) not in (None, name)}
            for name, module in self.modules.items()
        }
        return _circles(graph)

    def _module(self, used: str) -> str | None:
        """`package.module.name` is the module, unless it is one itself."""
        return used if used in self.modules else next((n for n in [used.rpartition(".")[0]] if n in self.modules), None)

    def floors(self) -> int:
        """Rows of the import rule, over all packages."""
        tree = ast.parse((self.root / "tests/unit/test_import_rule.py").read_text())
        [rows] = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS"
        ]
        return sum(len(found) for found in rows.values())

    def port_places(self) -> list[str]:
        """Modules that bind a number of vsock's ports to a name of a port."""
        return [name for name, module in self.modules.items() if any(map(_names_port, ast.walk(module.tree)))]

    def touched(self, pattern: str) -> list[str]:
        """Files besides tests and documents that a recipe's example is named in; of a hypervisor only those outside of
        its folder.
        """
        files = [(str(module.path), module.text) for module in self.modules.values()]
        files += [(name, (self.root / name).read_text()) for name in ("protos/agent.proto", "configuration.toml")]
        own = "/hypervisor/qemu"
        return [name for name, text in files if re.search(pattern, text, re.MULTILINE) and own not in name]


def _bound(node: ast.ClassDef) -> Iterator[str]:
    for found in ast.walk(node):
        if isinstance(found, ast.Attribute) and isinstance(found.ctx, ast.Store) and ast.unparse(found.value) == "self":
            yield found.attr


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield from _imports(node)


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one member (Kosaraju)."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(edges: dict[str, set[str]], start: str) -> list[str]:
        found, stack = [], [(start, iter(sorted(edges[start])))]
        seen.add(start)
        while stack:
            rest = stack[-1][1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                found.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges[following]))))
        return found

    for name in graph:
        if name not in seen:
            order += visit(graph, name)
    backwards: dict[str, set[str]] = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others:
            backwards[other].add(name)
    seen.clear()
    components = [visit(backwards, name) for name in reversed(order) if name not in seen]
    return [sorted(component) for component in components if len(component) > 1]


def _names_port(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef) and node.name == "Port":
        return True
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Constant):
        return False
    names = [target.id for target in _targets(node) if isinstance(target, ast.Name)]
    return node.value.value in VSOCK_PORTS and any(name.endswith("PORT") for name in names)


def _over(sizes: dict[str, int], bound: int) -> str:
    name = max(sizes, key=lambda name: sizes[name])
    over = sum(size > bound for size in sizes.values())
    return f"{sizes[name]} ({name}); {over} over {bound}"


def main(root: Path) -> None:
    """Print the figures."""
    house = House.of(root)
    circles, ports = house.circles(), house.port_places()
    lines = sum(house.files().values())
    figures = {
        "files, lines": f"{len(house.modules)}, {lines}",
        "largest file": _over(house.files(), MAX_FILE),
        "largest function": _over(house.functions(), MAX_FUNCTION),
        "most attributes of a class": _over(house.attributes(), MAX_ATTRIBUTES),
        "floors": str(house.floors()),
        "import circles": f"{len(circles)}" + "".join(f"\n    {' ↔ '.join(circle)}" for circle in circles),
        "module-level names": f"{house.names()}, {1000 * house.names() / lines:.1f} in 1,000 lines",
        "places that name a vsock port": f"{len(ports)} ({', '.join(ports)})",
    }
    for recipe, pattern in RECIPES.items():
        touched = house.touched(pattern)
        figures[f"places to touch: {recipe}"] = f"{len(touched)} ({', '.join(touched)})"
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
