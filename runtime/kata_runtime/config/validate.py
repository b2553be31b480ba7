"""From parsed TOML to `Config`, or to an error that names file, key, and what to do. Imports pydantic."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaValidator

from kata_runtime.config.kata_keys import INSTEAD, KATA_KEYS, KATA_TABLES
from kata_runtime.config.model import AgentConfig, Config, QemuConfig, RuntimeConfig
from kata_runtime.errors import ConfigError

__all__ = ["Document", "validate"]

TABLES: dict[str, type] = {"hypervisor.qemu": QemuConfig, "agent.kata": AgentConfig, "runtime": RuntimeConfig}
KEYS = {table: [entry.name for entry in fields(kind)] for table, kind in TABLES.items()}
_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "a table",
}
# pydantic's error types -> what was expected.
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "tuple_type": "an array of strings",
    "mapping_type": "a table of strings",
    "dict_type": "a table of strings",
    "string_pattern_mismatch": "an absolute path",
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}

Document = tuple[str, Mapping[str, Any]]


def validate(documents: list[Document]) -> Config:
    """The configuration in `documents`, pairs of a file's name and its parsed TOML; later ones win, key by key.

    Raises:
        ConfigError: a key is unknown or its value is of the wrong type; one line for each.
    """
    values: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    origin: dict[tuple[str, str], str] = {}
    problems: list[str] = []
    hints: list[str] = []
    for file, document in documents:
        for table, content in _tables(file, document, problems, hints):
            for key, value in content.items():
                if key not in KEYS[table]:
                    problem, hint = _unknown_key(table, key)
                    problems.append(f"{file}: {problem}")
                    hints.append(hint)
                else:
                    values[table][key] = value
                    origin[table, key] = file
    built: dict[str, Any] = {}
    for table, kind in TABLES.items():
        # Strict for the values; the table itself has to be lax, for it comes as a dict.
        validator = SchemaValidator({**TypeAdapter(kind).core_schema, "strict": False})
        try:
            built[table] = validator.validate_python(values[table])
        except ValidationError as error:
            problems += [_wrong_value(table, detail, origin) for detail in error.errors(include_url=False)]
            hints.append("configuration.toml shows every key with its default")
    if problems:
        raise ConfigError("\n".join(problems), hint="; ".join(dict.fromkeys(hint for hint in hints if hint)))
    return Config(built["hypervisor.qemu"], built["agent.kata"], built["runtime"], tuple(file for file, _ in documents))


def _tables(
    file: str, document: Mapping[str, Any], problems: list[str], hints: list[str], prefix: str = ""
) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables of a document that we know, by their dotted names; what else there is becomes a problem."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, content in document.items():
        table = f"{prefix}{name}"
        above = any(known.startswith(f"{table}.") for known in TABLES)
        if not above and table not in TABLES:
            problem, hint = _unknown_table(table, is_table=isinstance(content, dict))
            problems.append(f"{file}: {problem}")
            hints.append(hint)
        elif not isinstance(content, dict):
            problems.append(f"{file}: {table}: expected a table, got {_describe(content)}")
            hints.append(f"write [{next(known for known in TABLES if known.startswith(table))}]")
        elif above:
            found += _tables(file, content, problems, hints, f"{table}.")
        else:
            # Tables of Kata's inside one of ours, as [agent.kata.mem_agent].
            nested = [key for key in content if f"{table}.{key}" in KATA_TABLES]
            for key in nested:
                problem, hint = _unknown_table(f"{table}.{key}", is_table=True)
                problems.append(f"{file}: {problem}")
                hints.append(hint)
            found.append((table, {key: value for key, value in content.items() if key not in nested}))
    return found


def _unknown_table(table: str, *, is_table: bool) -> tuple[str, str]:
    if table in KATA_TABLES:
        return f"[{table}]: a table of Kata's that is not supported here", f"remove [{table}]"
    name = table.rsplit(".", 1)[-1]
    homes = [known for known, keys in KEYS.items() if name in keys]
    if not is_table and homes:
        return f"{table}: this key is outside its table", f"put it under [{homes[0]}]"
    near = difflib.get_close_matches(table, TABLES, n=1, cutoff=0.5)
    known = ", ".join(f"[{known}]" for known in TABLES)
    shown = f"[{table}]: unknown table" if is_table else f"{table}: unknown key"
    return shown, f"did you mean [{near[0]}]?" if is_table and near else f"the tables are {known}"


def _unknown_key(table: str, key: str) -> tuple[str, str]:
    where = f"[{table}] {key}"
    if key in KATA_KEYS[table]:
        instead = INSTEAD.get(key)
        what = f"use {instead} instead of {key}" if instead else f"remove {key}"
        return f"{where}: a key of Kata's that is not supported here", what
    elsewhere = [other for other, keys in KEYS.items() if key in keys]
    if elsewhere:
        return f"{where}: unknown key", f"{key} belongs to [{elsewhere[0]}]"
    near = difflib.get_close_matches(key, KEYS[table], n=1, cutoff=0.5)
    # Without a near one the whole list is short enough to help.
    hint = f"did you mean {near[0]}?" if near else f"the keys of [{table}] are {', '.join(KEYS[table])}"
    return f"{where}: unknown key", hint


def _wrong_value(table: str, detail: ErrorDetails, origin: Mapping[tuple[str, str], str]) -> str:
    key, *inner = (str(part) for part in detail["loc"])
    at = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in inner if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        expected = f"one of {context['expected']}"
    elif kind in _BOUNDS:
        whole = {name: int(limit) if limit == int(limit) else limit for name, limit in context.items()}
        expected = _BOUNDS[kind].format(**whole)
    else:
        expected = _EXPECTED.get(kind, detail["msg"])
    return f"{origin[table, key]}: [{table}] {key}{at}: expected {expected}, got {_describe(detail['input'])}"


def _describe(value: object) -> str:
    """A value for an error message; long ones are cut."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{_NAMES.get(type(value), type(value).__name__)} ({text if len(text) <= 60 else text[:57] + '...'})"
