"""What a pod may change of the configuration, by annotations of its OCI specification.

Names are Kata's, `io.katacontainers.config.<table>.<key>`; `runtime.enable_tracing` is ours. Kata asks its key
`enable_annotations` only for annotations of the hypervisor; here it is asked for all, and a name that it does not allow
is an error as it is there.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kata_runtime.config.model import Config
from kata_runtime.errors import ConfigError

__all__ = ["PREFIX", "read_annotations", "with_annotations"]

PREFIX = "io.katacontainers.config."

_log = logging.getLogger("kata.config")

# What Go's strconv.ParseBool takes, by which Kata reads them.
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
# Name after the prefix -> the configuration with this value.
_KNOWN = {
    "runtime.enable_tracing": lambda config, value: replace(
        config, runtime=replace(config.runtime, enable_tracing=value)
    ),
    "agent.enable_tracing": lambda config, value: replace(config, agent=replace(config.agent, enable_tracing=value)),
}


def read_annotations(bundle: Path) -> dict[str, str]:
    """The annotations of Kata's in a bundle's config.json; none where it can't be read, which others will say."""
    try:
        content = (bundle / "config.json").read_bytes()
        # Most have none: the whole need not be parsed twice.
        found = json.loads(content).get("annotations") if PREFIX.encode() in content else {}
    except (OSError, ValueError, AttributeError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): str(value) for key, value in found.items() if str(key).startswith(PREFIX)}


def with_annotations(config: Config, annotations: Mapping[str, str]) -> Config:
    """`config` as a pod with these annotations wants it. Those that we do not know are logged and have no effect.

    Raises:
        ConfigError: one is not allowed, or its value is none.
    """
    for name in sorted(annotations):
        apply = _KNOWN.get(name.removeprefix(PREFIX))
        if not name.startswith(PREFIX):
            continue
        if apply is None:
            _log.warning("annotation %s is not supported and has no effect", name)
            continue
        if not _allowed(config, name.removeprefix(PREFIX)):
            raise ConfigError(
                f"annotation {name} is not enabled", hint="allow it by [hypervisor.qemu] enable_annotations"
            )
        value = _BOOLEANS.get(annotations[name].strip())
        if value is None:
            raise ConfigError(f"annotation {name}: expected true or false, got {annotations[name][:60]!r}")
        config = apply(config, value)
    return config


def _allowed(config: Config, name: str) -> bool:
    try:
        return any(
            re.fullmatch(pattern, text)
            for pattern in config.hypervisor.enable_annotations
            for text in (name, name.rpartition(".")[2])
        )
    except re.error as error:
        raise ConfigError(
            f"[hypervisor.qemu] enable_annotations: {error.pattern!r} is no regular expression: {error}"
        ) from error
