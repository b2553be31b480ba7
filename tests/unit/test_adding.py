"""docs/adding.md: its recipes are complete, and as short as they say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/adding.md").read_text()
# By recipe: how its example is spelt in the code, and how many places there are.
RECIPES = {
    "A call of the agent": (r"\bUpdateInterface\b|\bupdate_interface\b", 4 + 1),
    "A span": (r'"setupTCFiltering"', 1),
    "A hypervisor": (r"hypervisor\.qemu\.hypervisor|\bQemuConfig\b|^\[hypervisor\.qemu\]", 1 + 1 + 3),
    "A configuration key": (r"\bhealth_check_request_timeout_ms\b", 3),
}


def places(recipe: str) -> list[str]:
    """The files that a recipe's table names."""
    [section] = re.findall(rf"^## {re.escape(recipe)}: .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return re.findall(r"^\| `([\w./-]+)` \|", section, re.MULTILINE)


def named(pattern: str) -> set[str]:
    """The files of the library, its messages and its configuration that have the example."""
    files = [ROOT / "configuration.toml", ROOT / "protos/agent.proto"]
    files += [path for folder in ("runtime", "agent", "telemetry", "common") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text(), re.MULTILINE)}
    # A hypervisor's folder is one place.
    return {re.sub(r"(/hypervisor/\w+/).*", r"\1", name) for name in found}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_recipes(recipe: str) -> None:
    pattern, count = RECIPES[recipe]
    listed = places(recipe)
    assert len(listed) == count
    assert named(pattern) == set(listed)


def test_every_recipe_is_held() -> None:
    assert set(re.findall(r"^## ([\w ]+):", TEXT, re.MULTILINE)) == set(RECIPES)
