"""Hooks that lie in the guest's own root file system, for all containers: Kata's guest_hook_path."""

import logging
import os
from pathlib import Path
from typing import Any, Final

from kata_agent.container.spec import Spec
from kata_agent.errors import InvalidError

__all__ = ["Hooks", "add_hooks", "find_hooks"]

_log = logging.getLogger("kata.agent")

KINDS: Final = ("prestart", "poststart", "poststop")
MAX_HOOKS: Final = 64

Hooks = dict[str, list[dict[str, Any]]]


def find_hooks(directory: str) -> Hooks:
    """OCI's hooks by their kind: programs in the folders of `directory`, by name. None without it.

    As with Kata, they get their name and kind as arguments, and what can't be executed is passed over. Raises
    InvalidError.
    """
    if not directory:
        return {}
    if not directory.startswith("/") or ".." in directory.split("/"):
        raise InvalidError(f"guest_hook_path {directory[:80]!r} is not an absolute path without '..'")
    found: Hooks = {}
    for kind in KINDS:
        home = Path(directory, kind)
        programs = sorted(path for path in home.iterdir() if _is_program(path)) if home.is_dir() else []
        found[kind] = [{"path": str(path), "args": [path.name, kind]} for path in programs[:MAX_HOOKS]]
    if not any(found.values()):
        _log.warning("guest_hook_path %s has no programs in %s", directory, ", ".join(KINDS))
    return {kind: hooks for kind, hooks in found.items() if hooks}


def _is_program(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and os.access(path, os.X_OK)


def add_hooks(spec: Spec, hooks: Hooks) -> None:
    """Have them run for a container, after its own."""
    if not hooks:
        return
    own = spec.get("hooks")
    merged = dict(own) if isinstance(own, dict) else {}
    for kind, more in hooks.items():
        merged[kind] = [*(merged.get(kind) or ()), *more]
    spec["hooks"] = merged
