"""From parsed TOML to `Config`, or to an error that names file, key, and what to do. Imports pydantic."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaValidator

from kata_runtime.config.kata_keys import ALIASES, KATA_KEYS, KATA_TABLES, agent_parameters
from kata_runtime.config.model import AgentConfig, Config, FactoryConfig, QemuConfig, RuntimeConfig
from kata_runtime.config.policy import policy_text
from kata_runtime.errors import ConfigError

__all__ = ["Document", "validate"]

TABLES: dict[str, type] = {
    "hypervisor.qemu": QemuConfig,
    "agent.kata": AgentConfig,
    "runtime": RuntimeConfig,
    "factory": FactoryConfig,
}
KEYS = {table: [entry.name for entry in fields(kind)] for table, kind in TABLES.items()}
# Ours, and those of Kata's that may stand in a file.
_KNOWN_TABLES = frozenset({*TABLES, *KATA_KEYS})
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
    notes: dict[str, None] = {}
    for file, document in documents:
        for given, content in _tables(file, document, problems, hints):
            for name, value in content.items():
                table, key = ALIASES.get((given, name), (given, name))
                if key in KEYS.get(table, ()):
                    values[table][key] = value
                    origin[table, key] = file
                elif key in KATA_KEYS.get(table, {}):
                    problem, note = _foreign(table, key, value)
                    problems += [f"{file}: {problem}"] if problem else []
                    notes |= {note: None} if note else {}
                else:
                    problem, hint = _unknown_key(table, key)
                    problems.append(f"{file}: {problem}")
                    hints.append(hint)
    built: dict[str, Any] = {}
    for table, kind in TABLES.items():
        # Strict for the values; the table itself has to be lax, for it comes as a dict.
        validator = SchemaValidator({**TypeAdapter(kind).core_schema, "strict": False})
        try:
            built[table] = validator.validate_python(values[table])
        except ValidationError as error:
            problems += [_wrong_value(table, detail, origin) for detail in error.errors(include_url=False)]
            hints.append("configuration.toml shows every key with its default")
    if params := values["hypervisor.qemu"].get("kernel_params"):
        where = f"{origin['hypervisor.qemu', 'kernel_params']}: [hypervisor.qemu] kernel_params"
        problems += [f"{where}: {problem}" for problem in agent_parameters(str(params))]
    if policy := values["agent.kata"].get("policy"):
        try:
            policy_text(str(policy))
        except ValueError as error:
            problems.append(f"{origin['agent.kata', 'policy']}: [agent.kata] policy: expected {error}")
    if problems:
        raise ConfigError("\n".join(problems), hint="; ".join(dict.fromkeys(hint for hint in hints if hint)))
    files = tuple(file for file, _ in documents)
    tables = (built["hypervisor.qemu"], built["agent.kata"], built["runtime"], built["factory"])
    return Config(*tables, files, tuple(notes))


def _foreign(table: str, key: str, value: object) -> tuple[str, str]:
    """What is wrong with the value of a key that Kata has and we do not, and what is to be noted of it; or nothing."""
    rule, where = KATA_KEYS[table][key], f"[{table}] {key}"
    kind = type(rule.taken[0])
    number = kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool)
    if not number and type(value) is not kind:
        return f"{where}: expected {_NAMES[kind]}, got {_describe(value)}", ""
    if value in rule.taken:
        return "", ""
    if rule.noted:
        return "", f"{where}: {rule.says}"
    return f"{where} = {_shown(value)} can't be had here: {rule.says}", ""


def _tables(
    file: str, document: Mapping[str, Any], problems: list[str], hints: list[str], prefix: str = ""
) -> list[tuple[str, Mapping[str, Any]]]:
    """The tables of a document that we know, by their dotted names; what else there is becomes a problem."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, content in document.items():
        table = f"{prefix}{name}"
        above = any(known.startswith(f"{table}.") for known in _KNOWN_TABLES)
        if not above and table not in _KNOWN_TABLES:
            problem, hint = _unknown_table(table, is_table=isinstance(content, dict))
            problems.append(f"{file}: {problem}")
            hints.append(hint)
        elif not isinstance(content, dict):
            problems.append(f"{file}: {table}: expected a table, got {_describe(content)}")
            hints.append(f"write [{next(known for known in sorted(_KNOWN_TABLES) if known.startswith(table))}]")
        elif table in _KNOWN_TABLES:
            # One may have another inside, as [agent.kata.mem_agent].
            inner = {key for key in content if f"{table}.{key}" in _KNOWN_TABLES | KATA_TABLES}
            found.append((table, {key: value for key, value in content.items() if key not in inner}))
            found += _tables(file, {key: content[key] for key in sorted(inner)}, problems, hints, f"{table}.")
        else:
            found += _tables(file, content, problems, hints, f"{table}.")
    return found


def _unknown_table(table: str, *, is_table: bool) -> tuple[str, str]:
    if table in KATA_TABLES:
        return f"[{table}]: a table of Kata's that is for what is not here", f"remove [{table}]"
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
    elsewhere = [other for other, keys in KEYS.items() if key in keys]
    if elsewhere:
        return f"{where}: unknown key", f"{key} belongs to [{elsewhere[0]}]"
    # Ours first: one of Kata's that is near is most often one without an effect.
    own = KEYS.get(table, [])
    near = difflib.get_close_matches(key, own, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(key, KATA_KEYS.get(table, {}), n=1, cutoff=0.8)
    # Without a near one the whole list is short enough to help.
    hint = f"did you mean {near[0]}?" if near else f"the keys of [{table}] are {', '.join(own or KATA_KEYS[table])}"
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
    """A value for an error message, with its type."""
    return f"{_NAMES.get(type(value), type(value).__name__)} ({_shown(value)})"


def _shown(value: object) -> str:
    """Long ones are cut."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
