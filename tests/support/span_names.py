"""The names that spans get, as the code says them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kata_common.contract import RPCS, snake_case
from kata_protos.containerd import sandbox_pb2, task_pb2

__all__ = ["pattern_of", "span_names"]

_ROOT = Path(__file__).parents[2]
_MAKERS = frozenset({"span", "stage", "detail", "start", "begin", "record"})


@cache
def span_names() -> frozenset[str]:
    """Names of the runtime's, the agent's and the store's spans; `*` stands for what is only known when it happens."""
    found = {name for name, rpc in RPCS.items() if rpc.level is not None}
    names = {snake_case(name) for name in found} | {f"AgentService.{name}" for name in found}
    for services in (task_pb2.DESCRIPTOR.services_by_name, sandbox_pb2.DESCRIPTOR.services_by_name):
        names |= {method.name for service in services.values() for method in service.methods}
    for folder in ("runtime", "agent", "telemetry/kata_traces/store"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            names |= set(_of(ast.parse(path.read_text())))
    return frozenset(names - {"*", ""})


def _of(tree: ast.Module) -> Iterator[str]:
    """What spans are called in a module. Where a variable has the name, that may be any text of the module."""
    open_ended = False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        yield from (_text(keyword.value) for keyword in node.keywords if keyword.arg == "span")
        maker = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if maker == "tell":  # `Session.tell`: stages with their times
            yield from (_text(stage.elts[0]) for stage in node.args if isinstance(stage, ast.Tuple))
        if maker in _MAKERS and node.args:
            yield _text(node.args[0])
            open_ended |= not _text(node.args[0])
    if open_ended:
        yield from (_text(node) for node in ast.walk(tree))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def pattern_of(name: str) -> re.Pattern[str]:
    """Matches the spans that are called `name`."""
    return re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
