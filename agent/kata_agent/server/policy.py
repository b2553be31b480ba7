"""Which calls the agent answers: rules that the host gives it (SetPolicy). docs/security.md has the format in words.

    {"default": "allow", "rules": [{"deny": ["ExecProcess"], "where": {"process.args.0": ["/bin/sh", "/bin/bash"]}}]}

The first rule decides that names the call (`*` stands for any letters) and whose every field has one of its values: a
field of a message by its name, and so on below it, where JSON in bytes is read as what it says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kata_agent.errors import DeniedError, InvalidError
from kata_common.contract import RPCS
from kata_common.documents import parse_json

__all__ = ["ALLOW_ALL", "Policy", "parse_policy"]

MAX_POLICY: Final = 1 << 20
MAX_RULES: Final = 1024
# Asked by whoever watches over the guest; they tell nothing and change nothing.
_ALWAYS: Final = frozenset({"Check", "Version"})
# Fields of bytes that hold JSON.
_JSON: Final = frozenset({"oci", "process", "resources"})
_HINT: Final = '{"default": "allow" or "deny", "rules": [{"allow" or "deny": [CALL...], "where": {FIELD: [VALUE...]}}]}'
_MISSING: Final = object()


class _Rule(NamedTuple):
    allows: bool
    calls: re.Pattern[str]
    where: tuple[tuple[tuple[str, ...], Sequence[object]], ...]


class Policy:
    """Rules in their order, and what holds where none decides."""

    def __init__(self, rules: Sequence[_Rule] = (), *, allows: bool = True) -> None:
        self._rules = rules
        self._allows = allows

    def check(self, call: str, request: Any) -> None:  # noqa: ANN401 - any message
        """Raises DeniedError where a call may not be answered."""
        if (not self._rules and self._allows) or call in _ALWAYS:
            return
        fields = _Fields(request)
        for number, rule in enumerate(self._rules, 1):
            if rule.calls.fullmatch(call) and all(fields.get(path) in values for path, values in rule.where):
                if not rule.allows:
                    raise DeniedError(f"{call} is denied by rule {number} of the sandbox's policy")
                return
        if not self._allows:
            raise DeniedError(f"{call} is denied: no rule of the sandbox's policy allows it")


ALLOW_ALL: Final = Policy()


class _Fields:
    """What is in a message, looked at as far as rules ask for it."""

    def __init__(self, request: Any) -> None:  # noqa: ANN401 - any message
        self._request = request
        self._read: dict[str, object] = {}

    def get(self, path: tuple[str, ...]) -> object:
        """What is there; something that equals nothing where there is nothing."""
        first, *rest = path
        value = self._top(first)
        for name in rest:
            if isinstance(value, Mapping):
                value = value.get(name, _MISSING)
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif hasattr(value, "DESCRIPTOR") and name in value.DESCRIPTOR.fields_by_name:
                value = _plain(getattr(value, name))
            else:
                return _MISSING
        return value

    def _top(self, name: str) -> object:
        if name not in self._read:
            value = _plain(getattr(self._request, name, _MISSING))
            if isinstance(value, bytes):
                try:
                    value = parse_json(value) if name in _JSON else value.decode()
                except ValueError:
                    value = _MISSING
            self._read[name] = value
        return self._read[name]


def _plain(value: object) -> object:
    """A repeated field as a list."""
    plain = value is _MISSING or isinstance(value, str | bytes | int | float | Mapping) or hasattr(value, "DESCRIPTOR")
    return value if plain else list(value)  # type: ignore[call-overload]


def parse_policy(text: str) -> Policy:
    """Raises InvalidError, which says what is wrong."""
    if len(text) > MAX_POLICY:
        raise InvalidError(f"a policy of {len(text)} characters, more than {MAX_POLICY}")
    if re.search(r"(?m)^\s*package\s+agent_policy\b", text):
        raise InvalidError(f"the policy is written in Rego, which this agent can't read; write it as {_HINT}")
    try:
        given = parse_json(text)
    except ValueError as error:
        raise InvalidError(f"the policy is not JSON: {error}; write it as {_HINT}") from error
    if not isinstance(given, dict) or not {*given} <= {"default", "rules"}:
        raise InvalidError(f"the policy is malformed; write it as {_HINT}")
    default, rules = given.get("default", "allow"), given.get("rules", [])
    if default not in ("allow", "deny") or not isinstance(rules, list) or len(rules) > MAX_RULES:
        raise InvalidError(f"the policy's default or its rules are malformed; write them as {_HINT}")
    return Policy([_rule(rule, number) for number, rule in enumerate(rules, 1)], allows=default == "allow")


def _rule(given: object, number: int) -> _Rule:
    match given:
        case {"allow": list(calls), **rest} | {"deny": list(calls), **rest} if {*rest} <= {"where"}:
            allows = isinstance(given, dict) and "allow" in given
            where = rest.get("where", {})
        case _:
            raise InvalidError(f"rule {number} of the policy is malformed; write it as {_HINT}")
    patterns = []
    for call in calls:
        pattern = re.escape(call).replace(r"\*", "[A-Za-z]*") if isinstance(call, str) else ""
        if not pattern or not any(re.fullmatch(pattern, known) for known in RPCS):
            raise InvalidError(f"rule {number} of the policy: there is no call {str(call)[:64]!r}")
        patterns.append(pattern)
    if not isinstance(where, dict) or not all(isinstance(values, list) for values in where.values()):
        raise InvalidError(f'rule {number} of the policy: "where" has lists of values by the names of fields')
    conditions = tuple((tuple(path.split(".")), values) for path, values in where.items())
    return _Rule(allows, re.compile("|".join(patterns)), conditions)
