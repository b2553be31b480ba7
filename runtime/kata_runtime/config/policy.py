"""Which calls a guest's agent answers, as the configuration has it; the agent itself reads the rules."""

import base64
import binascii
import re

__all__ = ["policy_text"]


def policy_text(given: str) -> str:
    """A policy as the agent takes it: as it is, or out of base64, as Kata has it in annotations.

    Raises:
        ValueError: it is neither, or in Rego; the words say what to do.
    """
    if given.lstrip().startswith("{"):
        return given
    try:
        text = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = given
    if re.search(r"(?m)^\s*package\s+agent_policy\b", text):
        raise ValueError("a policy in JSON (docs/security.md); Rego can't be read here")
    if not text.lstrip().startswith("{"):
        raise ValueError("a policy in JSON, or that in base64 (docs/security.md)")
    return text
