"""Tables as TOML, for people and for tools that read it: strings, numbers, booleans, lists of them, and tables."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["dump"]


def dump(tables: Mapping[str, Any], prefix: str = "") -> str:
    """The document; a table's own values come before the tables in it."""
    return "\n".join(_lines(tables, prefix)).strip() + "\n"


def _lines(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}.{_key(key)}" if prefix else _key(key)
            if not value or any(not isinstance(inner, Mapping) for inner in value.values()):
                yield ""
                yield f"[{name}]"
            yield from _lines(value, name)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # Of these JSON's form is TOML's as well: \u escapes, true and false, numbers.
    return json.dumps(value)
